#!/usr/bin/env bash
# Evaluates on a Slurm cluster, from a login node or inside a job:
#   bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS, GPUS_PER_NODE, NTASKS, NTASKS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS, PORT, LOG_DIR, PYTHON: as for
# tools/slurm_train.sh.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
  exit 2
fi
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
command -v srun >/dev/null || fail 'no srun here; run this on a Slurm login node, or use tools/dist_test.sh'
partition=$1
job=$2
config=$3
checkpoint=$4
shift 4
find_log_dir "$config" "$@"
find_command test.py "$config" "$checkpoint" --launcher slurm "$@"
with_srun "$partition" "$job"
