#!/usr/bin/env bash
# Runs the tests: makes the environment if needed, then runs pytest with the arguments that it gets.
#
#   bash launch/test.sh                     # all but the slow and the soak tests
#   bash launch/test.sh -m slow
#   bash launch/test.sh -n 0 -x tests/step/test_objectives.py
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test

exec "$python" -m pytest --numprocesses=2 --dist=loadgroup "$@"
