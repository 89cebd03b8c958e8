#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster. Call it on a login node, in a checkout that the nodes see, too.
#
#   bash launch/slurm.sh install                         # once: makes the environment, with CUDA
#   bash launch/slurm.sh run --name=flowers --nodes=2 --gpus=8 --time=24:00:00 --partition=gpu \
#     -- --config=configs/flowers_fm.py:variant=medium --data_dir=/data/tfds
#
#   run      submits launch/slurm_job.sh          logs     follows runs/NAME.log
#   status   shows whether it is queued or runs   delete   ends the run, which saves first; a new `run` goes on
#
# A minute or two before its time is up, and when it is preempted, the run saves, and the job is queued again under its
# number (up to 100 times). The run goes on where it was, to the bit. So --time limits one turn, not the whole run.
#
#   --name       names the job and the run directory, runs/NAME
#   --nodes      number of nodes; default 1
#   --gpus       number of GPUs of one node; default 8
#   --time       time of one turn; default 24:00:00
#   --partition, --account, --qos   as sbatch takes them
#   --dry-run    prints what would be done, as a script; needs no sbatch
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name="" nodes=1 gpus=8 time=24:00:00 partition="" account="" qos=""
parse_flags "install run logs status delete" \
  "name nodes gpus time partition account qos" "$@"

install() {
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  if "$dry_run"; then echo "bash launch/slurm.sh install"; else environment cuda; fi
}

run() {
  local site=()
  need_label name
  need time
  need_integer nodes gpus
  if [[ -n "$partition" ]]; then site+=(--partition="$partition"); fi
  if [[ -n "$account" ]]; then site+=(--account="$account"); fi
  if [[ -n "$qos" ]]; then site+=(--qos="$qos"); fi
  train_with --workdir="runs/$name"
  execute mkdir -p runs
  execute sbatch --job-name="$name" --nodes="$nodes" --gpus-per-node="$gpus" --ntasks-per-node="$gpus" --time="$time" \
    --output="runs/$name.log" ${site[@]+"${site[@]}"} launch/slurm_job.sh "${arguments[@]}"
}

logs() { need_label name && execute tail -n 100 -F "runs/$name.log"; }

status() { need_label name && execute squeue --me --name="$name"; }

delete() { need_label name && execute scancel --me --name="$name"; }

"$word"
