#!/usr/bin/env bash
# Trains on TPUs in a Google Kubernetes Engine cluster, as a JobSet. (xpk.sh is for clusters made by xpk.)
#
#   bash launch/gke.sh run --name=flowers --image=REGION-docker.pkg.dev/P/R/big_distill:tpu --topology=v5e:4x4 \
#     --bucket=B --service_account=trainer --spot -- --config=configs/flowers_fm.py:variant=medium --data_dir=/bucket/tfds
#   bash launch/gke.sh run --dry-run ... | less      # the manifest
#
#   run      writes dist/NAME.yaml and applies it      logs     follows what the first machine prints
#   status   shows the JobSet and its pods             delete   ends the run, which saves first; a new `run` goes on
#
# JobSet starts the run again, on all machines, when a node is preempted or a process dies (up to 100 times). The run goes
# on where it was, to the bit. A fault of the run's own (statuses 1 to 5) ends it for good. JAX finds the other machines by
# the variables that GKE sets in a TPU pod. It needs kubectl with the cluster's credentials, the JobSet operator and, for
# --bucket, the Cloud Storage FUSE CSI driver. launch/Dockerfile builds the image.
#
#   --name             names the JobSet and the run directory, /bucket/NAME
#   --image            the container
#   --topology         topology of the node pool, as in big_distill.plan; default v5e:2x4
#   --bucket           a Cloud Storage bucket, mounted as /bucket; it outlives the pods. Make it with
#                      --enable-hierarchical-namespace, so that renaming a whole checkpoint is one step
#   --claim            instead of --bucket: a PersistentVolumeClaim that all machines may write (Filestore)
#   --service_account  account in Kubernetes with access to the bucket; default `default`
#   --namespace        namespace in Kubernetes; default `default`
#   --spot             uses nodes that may be preempted; GKE then gives a pod 15 s to save, whatever is asked for
#   --grace_seconds    seconds to save (config.grace_seconds); default 30
#   --dry-run          prints what would be done, as a script; needs no kubectl
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name="" image="" topology=v5e:2x4 bucket="" claim="" service_account=default namespace=default spot=false grace_seconds=30
parse_flags "run logs status delete" \
  "name image topology bucket claim service_account namespace spot grace_seconds" "$@"
need_label name
plain_bucket
kubectl=(kubectl --namespace="$namespace")

manifest() {
  local selector="" annotations="" volume args
  if "$spot"; then selector=$'\n              cloud.google.com/gke-spot: "true"'; fi
  if [[ -n "$claim" ]]; then
    volume="persistentVolumeClaim: {claimName: $(json "$claim")}"
  else
    annotations=$'\n          metadata:\n            annotations: {gke-gcsfuse/volumes: "true"}'
    # A checkpoint is renamed when it is whole. A flat bucket renames file by file, and rename-dir-limit allows that.
    volume="csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes: {bucketName: $(json "$bucket"), mountOptions: \"implicit-dirs,rename-dir-limit=100000\"}"
  fi
  args="$(json "${arguments[@]}")"
  args="${args//\$(/\$\$(}" # Kubernetes would replace $(NAME)
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
    - {name: fault, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0  # all machines start again, or none
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [1, 2, 3, 4, 5]}
        template:$annotations
          spec:
            restartPolicy: Never
            serviceAccountName: $(json "$service_account")
            terminationGracePeriodSeconds: $((grace_seconds + 30))  # more than config.grace_seconds
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $gke_accelerator
              cloud.google.com/gke-tpu-topology: $shape$selector
            containers:
            - name: train
              image: $(json "$image")
              args: [$args]
              resources:
                limits: {google.com/tpu: $chips_per_host}
              volumeMounts:
              - {name: bucket, mountPath: /bucket}
            volumes:
            - name: bucket
              $volume
END
}

run() {
  need image
  if [[ -z "$bucket$claim" ]]; then
    fail "--bucket or --claim is needed: the run directory must outlive the pods"
  elif [[ -n "$bucket" && -n "$claim" ]]; then
    fail "--bucket=$bucket --claim=$claim: expected one of them: only one can be /bucket"
  fi
  need_integer grace_seconds
  slice "$topology"
  train_with --distributed --workdir="/bucket/$name" --config.grace_seconds="$grace_seconds"
  write "dist/$name.yaml" "$(manifest)"
  execute "${kubectl[@]}" apply --filename="dist/$name.yaml"
}

logs() {
  execute "${kubectl[@]}" logs --follow --container=train \
    --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}

status() {
  execute "${kubectl[@]}" get jobset "$name"
  execute "${kubectl[@]}" get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

delete() { execute "${kubectl[@]}" delete jobset "$name"; }

"$word"
