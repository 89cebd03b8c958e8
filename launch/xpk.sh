#!/usr/bin/env bash
# Trains on TPUs in a GKE cluster that xpk made (pip install xpk). gke.sh does it with kubectl alone.
#
#   bash launch/xpk.sh attach --cluster=C --project=P --zone=us-west4-a --bucket=B       # once for each bucket
#   bash launch/xpk.sh run --name=flowers --cluster=C --project=P --zone=us-west4-a --topology=v5e:4x4 --bucket=B \
#     --image=REGION-docker.pkg.dev/P/R/big_distill:tpu -- --config=configs/flowers_fm.py:variant=medium
#
#   attach   mounts the bucket as /bucket in this cluster's workloads that ask for it
#   run      submits the run                  status   shows what xpk knows of it
#   delete   ends the run, which saves first; a new `run` goes on
#
# xpk starts the run again when a node is preempted or a process ends with status 75 (up to 100 times). The logs are in
# Cloud Logging; xpk prints the link.
#
#   --name      names the workload and the run directory, /bucket/NAME
#   --cluster, --project, --zone   the cluster, and where it is
#   --topology  slice as in big_distill.plan; default v5e:2x4. For v4 and v5p only the size counts
#   --bucket    a Cloud Storage bucket; xpk's storage has the same name
#   --image     the container (launch/Dockerfile)
#   --spot      with node auto-provisioning: uses nodes that may be preempted; GKE then gives a pod 15 s to save
#   --grace_seconds  seconds to save (config.grace_seconds); default 30
#   --dry-run   prints what would be done, as a script; needs no xpk
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name="" cluster="" project="" zone="" topology=v5e:2x4 bucket="" image="" spot=false grace_seconds=30
parse_flags "attach run status delete" \
  "name cluster project zone topology bucket image spot grace_seconds" "$@"
need cluster project zone
plain_bucket
place=(--cluster="$cluster" --project="$project" --zone="$zone")

attach() {
  need bucket
  execute xpk storage attach "$bucket" "${place[@]}" --type=gcsfuse --bucket="$bucket" --mount-point=/bucket \
    --readonly=false --auto-mount=false --mount-options=implicit-dirs,rename-dir-limit=100000
}

run() {
  local kind=()
  need_label name
  need bucket image
  if "$spot"; then kind=(--spot); fi
  need_integer grace_seconds
  slice "$topology"
  train_with --distributed --workdir="/bucket/$name" --config.grace_seconds="$grace_seconds"
  # xpk sends SIGTERM to the shell that runs the command; exec puts the run in its place.
  execute xpk workload create --workload="$name" "${place[@]}" --tpu-type="$accelerator_type" --docker-image="$image" \
    --storage="$bucket" --max-restarts="$max_restarts" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds="$((grace_seconds + 30))" ${kind[@]+"${kind[@]}"} \
    --command="exec $(quote python -m big_distill.main "${arguments[@]}")"
}

status() { need_label name && execute xpk workload list "${place[@]}" --filter-by-job="$name"; }

delete() { need_label name && execute xpk workload delete "${place[@]}" --workload="$name"; }

"$word"
