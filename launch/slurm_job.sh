#!/usr/bin/env bash
# Runs on SLURM, with one process for each GPU. slurm.sh submits it, and sets the sizes and names that are not here.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail
# The last minute of the job's time is for saving. A preemption signals bash, too; the trap keeps bash alive.
trap : TERM

# JAX finds the other processes by srun's variables, and gives each its own GPU. A process that lost a peer ends by itself.
status=0
srun --kill-on-bad-exit=0 "${BIG_DISTILL_VENV:-.venv}/bin/python" -m big_distill.main --distributed "$@" || status=$?

# The run was stopped (75), or died of a signal: the same command goes on. If the job is no longer running, it was
# cancelled, or SLURM has preempted it and queued it again.
if ((status == 75 || status > 128)) && ((${SLURM_RESTART_COUNT:-0} < 100)) &&
  [[ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
