#!/usr/bin/env bash
# Trains on a Slurm cluster:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS="--time=1-0"] \
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# GPUS is the number of processes in all, one for each GPU. PYTHON names the interpreter.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
  exit 2
fi
command -v srun >/dev/null || { echo "error: no srun here; run this on a Slurm login node, or use tools/dist_train.sh" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
partition=$1
job=$2
config=$3
work_dir=$4
shift 4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$per_node" -gt "$gpus" ]; then per_node=$gpus; fi
read -r -a srun_args <<<"${SRUN_ARGS:-}"
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${srun_args[@]+"${srun_args[@]}"} \
  "${PYTHON:-python}" -u "$here/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
