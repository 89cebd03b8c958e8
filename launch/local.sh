#!/usr/bin/env bash
# Trains on this machine: makes the environment if needed, then runs the default config or the one that --config names.
#
#   bash launch/local.sh
#   bash launch/local.sh --config.seed=3
#   bash launch/local.sh --config=configs/mnist_kd.py --config.total_epochs=2
#   EXTRAS=cuda bash launch/local.sh        # extras of pyproject.toml: cuda, tpu, jpeg, tf
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment "${EXTRAS:-}"

for argument in "$@"; do
  case "$argument" in
    --config | --config=* | -config | -config=*) exec "$python" -m big_distill.main "$@" ;;
  esac
done
exec "$python" -m big_distill.main --config=configs/digits_fm.py "$@"
