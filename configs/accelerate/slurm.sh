#!/bin/bash
# sbatch configs/accelerate/slurm.sh CONFIG [KEY=VALUE]...
# One task a GPU, started by srun itself: the early warning reaches each of them, and srun's exit code is theirs.
#SBATCH --job-name=latentdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

srun --kill-on-bad-exit=0 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec latentdiff train "$@"' latentdiff "$@"
code=$?

# 143: stopped by the warning, with a checkpoint; the same job goes on from it. Anything else is finished or an error.
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
