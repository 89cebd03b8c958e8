# shellcheck shell=bash disable=SC2034  # the scripts that source it read its variables
# Gives flags, --help, --dry-run and the names of slices to the scripts that launch on other machines; they source it.
#
# A dry run prints a script: piped into bash, it does what the command without --dry-run does.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
dry_run=false
max_restarts=100 # for one run, on one machine or cluster

# goes_on STATUS: succeeds if a run that ended with this status goes on when it is started again. It was stopped (75), or
# it died of a signal, as JAX does when it is the first to see that a peer has died.
goes_on() { (($1 == 75 || $1 > 128)); }

fail() {
  echo "big_distill: $1" >&2
  exit 2
}

# parse_flags "WORD ..." "NAME ..." "$@": sets `word` to the given WORD, the variable of each given --NAME (to true if it
# was false), and `arguments` to all that follows `--`. --help prints the comment at the top of the script.
parse_flags() {
  local known=" $2 dry_run " flag given argument words=() expected="${1// /, }"
  local -r known_words=" $1 "
  shift 2
  arguments=()
  while (($#)); do
    argument="$1"
    shift
    case "$argument" in
      --) arguments=("$@") && break ;;
      --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "launch/$(basename "$0")" && exit ;;
      -*) ;;
      *) words+=("$argument") && continue ;;
    esac
    flag="${argument%%=*}"
    flag="${flag#--}"
    flag="${flag//-/_}"
    if [[ "$known" != *" $flag "* ]]; then
      fail "unknown flag ${argument%%=*}$(nearest "$flag" "$known"); flags of main.py come after --"
    elif [[ "$argument" == *=* ]]; then
      given="${argument#*=}"
    elif [[ "${!flag}" == false ]]; then
      given=true
    elif (($#)); then
      given="$1"
      shift
    else
      fail "$argument needs a value"
    fi
    if [[ "${!flag}" =~ ^(true|false)$ && ! "$given" =~ ^(true|false)$ ]]; then
      fail "--$flag=$given: expected true or false"
    fi
    printf -v "$flag" %s "$given"
  done
  word="${words[*]-}"
  if [[ "$known_words" != *" $word "* ]]; then fail "expected one of $expected, not '$word'; --help explains them"; fi
}

# nearest NAME "KNOWN ...": prints the known flag that is most like NAME, if Python is installed.
nearest() {
  python3 -c 'import difflib, sys
for name in difflib.get_close_matches(sys.argv[1], sys.argv[2].split(), 1, 0.5): print(f"; did you mean --{name}?", end="")
' "$@" 2>/dev/null || true
}

# need NAME ...: fails unless each flag has a value.
need() {
  local flag
  for flag in "$@"; do
    if [[ -z "${!flag}" ]]; then fail "--$flag is needed; --help explains it"; fi
  done
}

# need_integer NAME ...: fails unless each flag is a whole number of 1 or more.
need_integer() {
  local flag
  for flag in "$@"; do
    if [[ ! "${!flag}" =~ ^[1-9][0-9]*$ ]]; then fail "--$flag=${!flag}: expected a whole number, 1 or more"; fi
  done
}

# need_label NAME ...: fails unless each flag is fit to name a resource, a mount and a file.
need_label() {
  local flag
  need "$@"
  for flag in "$@"; do
    if [[ ! "${!flag}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
      fail "--$flag=${!flag}: expected at most 40 lower-case letters, digits and dashes, a letter first"
    fi
  done
}

# plain_bucket: sets `bucket`, if it is given, to its name alone; the user may also write gs://NAME.
plain_bucket() {
  local given="$bucket"
  bucket="${bucket#gs://}"
  bucket="${bucket%/}"
  if [[ -n "$given" && ! "$bucket" =~ ^[a-z0-9][-_.a-z0-9]*$ ]]; then
    fail "--bucket=$given: expected the name of a Cloud Storage bucket, no directory in it"
  fi
}

# quote WORD ...: prints the words quoted for a shell.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[][a-zA-Z0-9_@%+=:,./~-]+$ || "$word" == '~'* || "$word" == *[][]* ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf %s "${line# }"
}

# execute COMMAND ...: prints the command, and runs it unless this is a dry run.
execute() {
  if "$dry_run"; then
    quote "$@" && echo
    return
  fi
  if ! type "$1" >/dev/null 2>&1; then fail "$1 is not installed here; --dry-run shows what it would be asked"; fi
  { printf '+ ' && quote "$@" && echo; } >&2
  "$@"
}

# write FILE TEXT: writes the file; a dry run prints the command that would.
write() {
  execute mkdir -p "$(dirname "$1")"
  if "$dry_run"; then
    printf "cat >%s <<'END'\n%s\nEND\n" "$(quote "$1")" "$2"
  else
    printf '%s\n' "$2" >"$1"
  fi
}

# json WORD ...: prints the words as JSON strings with commas between; YAML reads them, too.
json() {
  local word line=""
  for word in "$@"; do
    word="${word//\\/\\\\}"
    word="${word//\"/\\\"}"
    word="${word//$'\t'/\\t}"
    line+=", \"${word//$'\n'/\\n}\""
  done
  printf %s "${line#, }"
}

# train_with DEFAULT ...: puts the defaults before `arguments`, except those that `arguments` already sets.
train_with() {
  local default argument config=false defaults=()
  for argument in "${arguments[@]-}"; do
    if [[ "$argument" =~ ^--?config(=|$) ]]; then config=true; fi
  done
  if ! "$config"; then fail "-- --config=FILE is needed, e.g. -- --config=configs/digits_fm.py"; fi
  for default in "$@"; do
    for argument in "${arguments[@]}"; do
      if [[ "${argument%%=*}" == "${default%%=*}" ]]; then continue 2; fi
    done
    defaults+=("$default")
  done
  arguments=("${defaults[@]}" "${arguments[@]}")
}

# slice TOPOLOGY: translates the name of a slice in big_distill.plan (v5e:2x4). Sets `accelerator_type`, `runtime` (Cloud
# TPU), `gke_accelerator`, `shape` (GKE), and the numbers of `chips`, `hosts` and `chips_per_host`. The sizes are those of
# docs.cloud.google.com/tpu/docs/{v4,v5e,v6e} and xpk's system_characteristics.py. From 4x4x4 on, slices of v4 and v5p are
# made of whole 4x4x4 cubes, up to a pod.
slice() {
  local side generation="${1%%:*}" sizes="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" pod=0
  shape="${1#*:}"
  chips=1
  if [[ ! "$1" =~ ^[a-z0-9]+:[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]]; then
    fail "--topology=$1: expected GENERATION:SIZE as big_distill.plan takes it, e.g. v5e:2x4"
  fi
  for side in ${shape//x/ }; do chips=$((chips * side)); done
  case "$generation" in
    v4) accelerator_type="v4-$((2 * chips))" runtime=tpu-ubuntu2204-base gke_accelerator=tpu-v4-podslice pod=4096 ;;
    v5p) accelerator_type="v5p-$((2 * chips))" runtime=v2-alpha-tpuv5 gke_accelerator=tpu-v5p-slice pod=8960 ;;
    v5e) accelerator_type="v5litepod-$chips" runtime=v2-alpha-tpuv5-lite gke_accelerator=tpu-v5-lite-podslice ;;
    v6e) accelerator_type="v6e-$chips" runtime=v2-alpha-tpuv6e gke_accelerator=tpu-v6e-slice ;;
    *) fail "--topology=$1: expected v4, v5e, v5p or v6e" ;;
  esac
  if ((pod)); then sizes="2x2x1 2x2x2 2x2x4 2x4x4"; fi
  if [[ " $sizes " != *" $shape "* ]] && ! cubes "$shape" "$pod"; then
    sizes="${sizes// /, }"
    if ((pod)); then sizes+=", and multiples of 4 in rising order up to $pod chips, e.g. 4x4x8"; fi
    fail "--topology=$1: $generation has the sizes $sizes"
  fi
  chips_per_host=4
  if ((!pod && chips <= 8)); then chips_per_host=$chips; fi # one machine
  hosts=$((chips / chips_per_host))
}

# cubes SHAPE MOST: succeeds if the shape is made of whole 4x4x4, has its sides in rising order, and at most MOST chips.
cubes() {
  local a b c
  IFS=x read -r a b c <<<"$1"
  ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && 0 < a && a <= b && b <= c && a * b * c <= $2))
}
