#!/usr/bin/env bash
# Trains on the cheapest cloud that SkyPilot finds (pip install skypilot), as a managed job: GPUs, or a TPU of one machine.
#
#   bash launch/skypilot.sh run --name=flowers --accelerators=H100:8 --nodes=2 --bucket=s3://B --spot \
#     -- --config=configs/flowers_fm.py:variant=medium --data_dir=/bucket/tfds
#   bash launch/skypilot.sh run --dry-run ... | less      # the task
#
#   run      writes dist/NAME.yaml and launches it      logs     follows what the run prints
#   status   shows all jobs                             delete   ends the run; a new `run` goes on from its last checkpoint
#
# SkyPilot looks for another machine when one was preempted, and starts the run again there. It also starts a run again
# that ended with status 75. The run goes on where it was, to the bit.
#
#   --name          names the job and the run directory, /bucket/NAME
#   --accelerators  accelerators of one node, as SkyPilot writes them: H100:8, A100-80GB:4, tpu-v6e-8
#   --nodes         number of nodes; default 1
#   --bucket        a bucket with its scheme, gs://B or s3://B, mounted as /bucket; it outlives the machines. A checkpoint
#                   is renamed when it is whole, so make a gs:// bucket with --enable-hierarchical-namespace
#   --infra         the place, as SkyPilot writes it: gcp, aws/us-east-1, k8s/CONTEXT; default anywhere
#   --spot          uses cheaper machines, which may be preempted at any time
#   --dry-run       prints what would be done, as a script; needs no SkyPilot
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name="" accelerators="" nodes=1 bucket="" infra="" spot=false
parse_flags "run logs status delete" \
  "name accelerators nodes bucket infra spot" "$@"

task() {
  local extra=cuda where="" command
  if [[ "$accelerators" == tpu-* ]]; then extra=tpu; fi
  if [[ -n "$infra" ]]; then where=$'\n'"  infra: $(json "$infra")"; fi
  command="$(quote .venv/bin/python -m big_distill.main "${arguments[@]}")"
  cat <<END
name: $name
num_nodes: $nodes
workdir: .
resources:
  accelerators: $(json "$accelerators")
  use_spot: $spot$where
  job_recovery: {max_restarts_on_errors: 3, recover_on_exit_codes: [75]}
file_mounts:
  /bucket: {source: $(json "$bucket"), mode: MOUNT}
setup: |
  python3 -m pip install --quiet uv
  python3 -m uv sync --frozen --extra $extra --python 3.12
run: |
  exec ${command//$'\n'/$'\n'  } \\
    --coordinator="\$(head -n 1 <<<"\$SKYPILOT_NODE_IPS"):8476" \\
    --num_processes="\$SKYPILOT_NUM_NODES" --process_id="\$SKYPILOT_NODE_RANK"
END
}

run() {
  need_label name
  need accelerators bucket
  need_integer nodes
  if [[ ! "$bucket" =~ ^[a-z0-9]+://[^/]+ ]]; then fail "--bucket=$bucket: expected gs://NAME or s3://NAME"; fi
  train_with --workdir="/bucket/$name"
  write "dist/$name.yaml" "$(task)"
  execute sky jobs launch --yes --detach-run "dist/$name.yaml"
}

logs() { need_label name && execute sky jobs logs --name="$name"; }

status() { execute sky jobs queue; }

delete() { need_label name && execute sky jobs cancel --yes --name="$name"; }

"$word"
