#!/usr/bin/env bash
# Trains on a Slurm cluster, from a login node or inside a job (tools/slurm_job.sbatch, salloc):
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
#   GPUS=0 NTASKS=4 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR      # 4 processes on CPUs
# GPUS            total number of GPUs, one process each (8); 0: CPUs
# GPUS_PER_NODE   GPUs per machine (8, or GPUS if that is less)
# NTASKS          with GPUS=0: number of processes
# NTASKS_PER_NODE with GPUS=0: processes per machine (as Slurm decides)
# CPUS_PER_TASK   cores per process (5)
# SRUN_ARGS       more options of srun: SRUN_ARGS="--time=1-0 --signal=TERM@120"
# PORT            port that the processes connect to (derived from the job id)
# LOG_DIR         folder for the output of each rank (ranks/ in the work dir); that of rank 0 is shown too
# PYTHON          the interpreter
# Inside a job the resources are those of the job: PARTITION is ignored, GPUS and GPUS_PER_NODE are refused, NTASKS and
# CPUS_PER_TASK may be less.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
  exit 2
fi
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
command -v srun >/dev/null || fail 'no srun here; run this on a Slurm login node, or use tools/dist_train.sh'
partition=$1
job=$2
config=$3
work_dir=$4
shift 4
find_log_dir "$config" --work-dir "$work_dir" "$@"
find_command train.py "$config" --work-dir "$work_dir" --launcher slurm "$@"
with_srun "$partition" "$job"
