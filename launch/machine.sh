#!/usr/bin/env bash
# Trains on this machine in the background; starts the run again when it stopped but can go on (status 75, or a signal).
#
#   bash launch/machine.sh install [--bucket=NAME]    # makes the environment; mounts a bucket at /bucket
#   bash launch/machine.sh start [--bucket=NAME] -- --config=configs/digits_fm.py --workdir=/bucket/digits
#   bash launch/machine.sh status                     # prints running, exit STATUS, or nothing
#   bash launch/machine.sh logs                       # follows what the run prints
#   bash launch/machine.sh stop                       # makes the run save and end, and waits for that
#
# tpu_vm.sh calls it on every machine of a slice.
#
#   --bucket    a Cloud Storage bucket, mounted with gcsfuse; must be the same for install and start
#   --extra     extra of pyproject.toml in the environment: tpu or cuda; default tpu
#   --home      directory of the run's log, process id and status; default ~/.big_distill
#   --pause     seconds before a run that stopped goes on; default 10
#   --dry-run   prints what would be done
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bucket="" extra=tpu home=~/.big_distill pause=10
parse_flags "install start supervise status logs stop" \
  "bucket extra home pause" "$@"
need_integer pause
plain_bucket

install() {
  execute python3 -m pip install --quiet --user uv
  execute ~/.local/bin/uv sync --frozen --extra "$extra" --python 3.12
  if [[ -z "$bucket" ]] || type gcsfuse >/dev/null 2>&1; then return; fi
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  execute sudo curl --silent --show-error --fail --output "$key" "$packages/doc/apt-key.gpg"
  execute sudo bash -c "echo deb [signed-by=$key] $packages gcsfuse-\$(lsb_release -cs) main >/etc/apt/sources.list.d/gcsfuse.list"
  execute sudo apt-get --quiet update
  execute sudo apt-get --quiet --yes install gcsfuse
}

# Mounts the bucket. A run directory outside the bucket would be lost with the machine.
mount_bucket() {
  if [[ -z "$bucket" ]] || mountpoint --quiet /bucket; then return; fi
  execute sudo install --directory --owner="$(id -un)" /bucket
  # A checkpoint is renamed when it is whole. A flat bucket renames file by file, and --rename-dir-limit allows that.
  execute gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" /bucket
}

start() {
  if [[ "$(status)" == running ]]; then return; fi
  mount_bucket
  execute mkdir -p "$home"
  execute rm -f "$home/status"
  # shellcheck disable=SC2016
  execute bash -c 'nohup bash "$@" </dev/null >>"$0/log" 2>&1 & echo $! >"$0/pid"' "$home" \
    launch/machine.sh supervise --home="$home" --pause="$pause" -- "${arguments[@]}"
}

# Runs main.py until it is done, has a fault, or somebody stops this script.
supervise() {
  local stopping=false child status restarts
  trap 'stopping=true; kill -TERM "$child" 2>/dev/null || true' TERM
  for ((restarts = 0; ; restarts++)); do
    .venv/bin/python -m big_distill.main "${arguments[@]}" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends a wait, but not the run
    status=0
    wait "$child" || status=$?
    if "$stopping" || ! goes_on "$status" || ((restarts == max_restarts)); then break; fi
    echo "big_distill: the run ended with status $status; the same command goes on in $pause s"
    sleep "$pause" & # in the background, so that a signal acts at once
    wait $! || true
    if "$stopping"; then break; fi
  done
  echo "exit $status" >"$home/status"
}

status() {
  if [[ -e "$home/status" ]]; then
    cat "$home/status"
  elif grep --quiet --no-messages supervise "/proc/$(cat "$home/pid" 2>/dev/null || true)/cmdline"; then
    echo running
  else
    echo nothing
  fi
}

logs() { execute tail -n 100 -F "$home/log"; }

stop() {
  if [[ "$(status)" != running ]]; then return; fi
  execute kill -TERM "$(cat "$home/pid")"
  while ! "$dry_run" && [[ "$(status)" == running ]]; do sleep 1; done
}

"$word"
