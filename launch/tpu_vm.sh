#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on all machines of a TPU slice.
#
#   bash launch/tpu_vm.sh resume --name=flowers --project=P --zone=us-west4-a --topology=v5e:4x4 --bucket=B --spot \
#     -- --config=configs/flowers_fm.py:variant=medium --data_dir=/bucket/tfds
#
# resume brings a run to its end. It creates the slice, installs, and starts the run, where these are missing. It makes a
# preempted slice anew. It starts a run that stopped again, and the run goes on where it was, to the bit. It ends when the
# run is done or has a fault. You can interrupt resume and give it again at any time; the run does not notice. These are
# its steps, one by one:
#
#   create    asks for the slice          logs      follows what the first machine prints
#   install   copies the commit (HEAD) to every machine, and makes the environment there
#   run       starts main.py on all machines, in the background (launch/machine.sh)
#   status    shows what every machine says: running, exit STATUS, or nothing
#   stop      makes the run save and end  delete    gives the slice back; you pay until then
#
#   --name      names the slice, the queued resource, and the run directory, /bucket/NAME
#   --project   project of Google Cloud   --zone    zone that has the TPUs
#   --topology  slice as in big_distill.plan; default v5e:2x4. For v4 and v5p only the size counts: Google chooses the
#               shape
#   --bucket    a Cloud Storage bucket, mounted as /bucket on all machines; it outlives them. Make it with
#               --enable-hierarchical-namespace, so that renaming a whole checkpoint is one step
#   --spot      uses cheaper machines, which may be preempted at any time, after 30 s of warning
#   --queued    waits in line (a queued resource) where create would fail because no TPU is free
#   --runtime   software version of the machines, if not the usual one for the topology
#   --poll      seconds between two checks of resume; default 60
#   --dry-run   prints what would be done, as a script; needs no gcloud
#
# With several machines gcloud needs its key in the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name="" project="" zone="" topology=v5e:2x4 bucket="" spot=false queued=false runtime="" poll=60
parse_flags "resume create install run logs status stop delete" \
  "name project zone topology bucket spot queued runtime poll" "$@"
need_label name
need project zone
need_integer poll
plain_bucket
version="$runtime"
slice "$topology"
version="${version:-$runtime}"
place=(--zone="$zone" --project="$project")

on_machines() { # WORKER COMMAND ...
  local worker="$1"
  shift
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$worker" --command="$(quote "$@")"
}

on_all() { on_machines all bash big_distill/launch/machine.sh "$@"; }

create() {
  local kind=()
  if "$spot"; then kind=(--spot); fi
  if "$queued"; then
    execute gcloud compute tpus queued-resources create "$name" "${place[@]}" --node-id="$name" \
      --accelerator-type="$accelerator_type" --runtime-version="$version" ${kind[@]+"${kind[@]}"}
  else
    execute gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
      --accelerator-type="$accelerator_type" --version="$version" ${kind[@]+"${kind[@]}"}
  fi
}

install() {
  need bucket
  execute mkdir -p dist &&
    execute git archive --format=tar.gz --output=dist/big_distill.tar.gz HEAD &&
    execute gcloud compute tpus tpu-vm scp dist/big_distill.tar.gz "$name:" "${place[@]}" --worker=all &&
    on_machines all bash -c "mkdir -p big_distill && tar -xzf big_distill.tar.gz -C big_distill" &&
    on_all install --bucket="$bucket"
}

run() {
  need bucket
  train_with --distributed --workdir="/bucket/$name"
  on_all start --bucket="$bucket" -- "${arguments[@]}"
}

logs() { on_machines 0 bash big_distill/launch/machine.sh logs; }

status() { on_machines all bash -c "bash big_distill/launch/machine.sh status || echo nothing"; }

stop() { on_all stop; }

delete() {
  if "$queued"; then
    execute gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

state() {
  local resource=tpu-vm field=state
  if "$queued"; then resource=queued-resources field=state.state; fi
  execute gcloud compute tpus "$resource" list "${place[@]}" "--filter=name~/$name\$" "--format=value($field)"
}

begin() { install && run; }

# Prints what the run needs next: create, delete, begin, run or wait; or that it is done, or has a fault.
next_step() {
  local machines said status
  case "$(state || echo unknown)" in
    READY | ACTIVE) ;;
    "") echo create && return ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) echo delete && return ;;
    *) echo wait && return ;;
  esac
  machines="$(status)" || { echo wait && return; } # the slice may be ending: its state will say so
  while read -r said status; do
    if [[ "$said" == exit ]] && ((status != 0)) && ! goes_on "$status"; then echo "fault $status" && return; fi
  done <<<"$machines"
  case "$machines" in
    *nothing*) echo begin ;;
    *"exit "[1-9]*) echo run ;;
    *running*) echo wait ;;
    *"exit 0"*) echo "done" ;;
    *) echo wait ;;
  esac
}

resume() {
  need bucket
  train_with --distributed --workdir="/bucket/$name"
  if "$dry_run"; then
    echo "# resume begins so if there is no slice; later it repeats the first and last command, and does what they call for"
    state && create && begin && status
    return
  fi
  local step failures=0
  while true; do
    step="$(next_step)"
    case "$step" in
      wait) sleep "$poll" && continue ;;
      "done") echo "$name is done; its slice costs money until you delete it" && return ;;
      fault*)
        on_machines 0 tail -n 20 .big_distill/log || true
        stop || true
        fail "$name ended with status ${step#fault }, which starting it again would not mend"
        ;;
    esac
    if "$step"; then
      failures=0
    elif ((++failures == 5)); then
      fail "gave up: $step failed $failures times in a row"
    else
      sleep "$poll"
    fi
  done
}

"$word"
