#!/usr/bin/env bash
# One run on SLURM, a process for each GPU; slurm.sh submits it with the sizes and names that are not here.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail
# The last minute of the job's time is for saving. When the job is preempted bash is told, too: it is to outlive that.
trap : TERM

# JAX finds the other processes by srun's variables, and gives each its own GPU. One that lost a peer leaves by itself.
status=0
srun --kill-on-bad-exit=0 "${BIG_DISTILL_VENV:-.venv}/bin/python" -m big_distill.main --distributed "$@" || status=$?

# Stopped (75), or died of a signal: the same command goes on. A job that is no longer running was cancelled, or preempted
# and put into the queue by SLURM.
if ((status == 75 || status > 128)) && ((${SLURM_RESTART_COUNT:-0} < 100)) &&
  [[ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
