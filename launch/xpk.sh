#!/usr/bin/env bash
# Trains on TPUs in a GKE cluster that xpk made (pip install xpk). gke.sh needs kubectl alone.
#
#   bash launch/xpk.sh attach --cluster=C --project=P --zone=us-west4-a --bucket=B       # once a bucket
#   bash launch/xpk.sh run --name=flowers --cluster=C --project=P --zone=us-west4-a --topology=v5e:4x4 --bucket=B \
#     --image=REGION-docker.pkg.dev/P/R/big_distill:tpu -- --config=configs/flowers_fm.py:variant=medium
#
#   attach   mounts the bucket as /bucket in this cluster's workloads that ask for it
#   run      submits the run                  status   what xpk knows of it
#   delete   ends it: the run saves first; run again goes on
#
# xpk starts the run again when a node is preempted or a process leaves with status 75 (100 times). Its logs are in Cloud
# Logging; xpk prints the link.
#
#   --name      of the workload, and of the run directory, /bucket/NAME
#   --cluster, --project, --zone   the cluster
#   --topology  as in big_distill.plan, v5e:2x4; of v4 and v5p the size counts
#   --bucket    of Cloud Storage; what xpk calls the storage has the same name
#   --image     the container (launch/Dockerfile)
#   --spot      with node auto-provisioning: nodes that may be preempted; GKE then leaves a pod 15 s for saving
#   --grace_seconds  for saving (config.grace_seconds); 30
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
  # exec: xpk's SIGTERM goes to the shell that it runs the command in.
  execute xpk workload create --workload="$name" "${place[@]}" --tpu-type="$accelerator_type" --docker-image="$image" \
    --storage="$bucket" --max-restarts="$max_restarts" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds="$((grace_seconds + 30))" ${kind[@]+"${kind[@]}"} \
    --command="exec $(quote python -m big_distill.main "${arguments[@]}")"
}

status() { need_label name && execute xpk workload list "${place[@]}" --filter-by-job="$name"; }

delete() { need_label name && execute xpk workload delete "${place[@]}" --workload="$name"; }

"$word"
