#!/usr/bin/env bash
# Runs the tests: makes the environment if need be, then starts pytest. Arguments are passed on.
#
#   bash launch/test.sh                     # what everybody runs
#   bash launch/test.sh --all               # every test but those marked slow or soak
#   bash launch/test.sh -m slow
#   bash launch/test.sh -n 0 -x tests/step/test_objectives.py
#
# Compiled programs are kept in .pytest_cache/jax: later runs are faster. Delete that folder to start without them.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test

exec "$python" -m pytest --numprocesses=2 --dist=loadgroup "$@"
