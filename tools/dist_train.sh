#!/usr/bin/env bash
# Trains with several processes on this machine, or on several machines: one process per GPU (or on CPUs).
#   bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash tools/dist_train.sh CONFIG 8      # on the first of two machines
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash tools/dist_train.sh CONFIG 8      # on the second
# NNODES       number of machines (1)
# NODE_RANK    index of this machine, 0 for the first
# MASTER_ADDR  address of the first machine
# PORT         port that the processes connect to: by default a free one on one machine, 29500 of the first on several
# MAX_RESTARTS number of restarts of all processes after one has failed (0). With 1 or more, train.py gets --resume:
#              it resumes from the newest checkpoint of the work dir, which several machines must share; the ranks of
#              the machines then follow their addresses.
# LOG_DIR      folder for the output of each rank (ranks/ in the work dir); that of rank 0 is shown too
# PYTHON       the interpreter
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]; GPUS is the number of processes, 1 or more" >&2
  exit 2
fi
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
config=$1
gpus=$2
shift 2
find_log_dir "$config" "$@"
find_resume "$@"
find_command train.py "$config" --launcher pytorch "$@" ${resume[@]+"${resume[@]}"}
with_torchrun "$gpus"
