# shellcheck shell=bash
# Sourced by the launch scripts: `environment [extra,...]` makes or reuses the Python environment, and sets $python.
#
#   PYTHON            the interpreter to build on; by default the first that fits of python3, python3.14, ... python3.11
#   BIG_DISTILL_VENV  the directory of the environment; by default .venv in the checkout
#
# The scripts work in the root of the checkout. Relative paths, also --workdir, mean the same wherever they are called.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
venv="${BIG_DISTILL_VENV:-.venv}"

# Prints the real path of an interpreter: it follows shims, and a virtual environment that happens to be active.
find_python() {
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11) candidate
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    # array-record has no wheels for Python 3.15 yet.
    "$candidate" -c 'import os, sys
(3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit(1)
print(os.path.realpath(sys.executable))' 2>/dev/null && return
  done
  echo "big_distill: found no Python 3.11 to 3.14 (tried ${candidates[*]}); set PYTHON to the path of one" >&2
  return 1
}

environment() {
  local extras="${1:-}" extra base stamp installed
  base="$(find_python)"
  python="$venv/bin/python"
  installed="$venv/.installed-${extras:-core}"
  stamp="$base $(cat pyproject.toml uv.lock | cksum)"
  if [[ "$(cat "$installed" 2>/dev/null)" == "$stamp" ]]; then return; fi

  if uv --version >/dev/null 2>&1; then
    # --inexact keeps what other extras, or the user, have installed.
    local sync=(uv sync --frozen --inexact --compile-bytecode --no-python-downloads --python "$base")
    for extra in ${extras//,/ }; do sync+=(--extra "$extra"); done
    UV_PROJECT_ENVIRONMENT="$venv" "${sync[@]}"
  else
    # An environment on another Python, or one that uv made without pip, makes room for a new one.
    if [[ "$("$python" -c 'import os, pip, sys; print(os.path.realpath(sys.executable))' 2>/dev/null)" != "$base" ]]; then
      if [[ -e "$venv/pyvenv.cfg" ]]; then rm -r "$venv"; fi
      "$base" -m venv "$venv"
    fi
    "$python" -m pip install --editable ".${extras:+[$extras]}"
  fi
  echo "$stamp" >"$installed"
}
