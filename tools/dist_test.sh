#!/usr/bin/env bash
# Evaluates with several processes on this machine, or on several machines: one process per GPU (or on CPUs).
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# NNODES, NODE_RANK, MASTER_ADDR, PORT, LOG_DIR, PYTHON: as for tools/dist_train.sh.
set -euo pipefail
if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]; GPUS is the number of processes, 1 or more" >&2
  exit 2
fi
# shellcheck source=tools/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
config=$1
checkpoint=$2
gpus=$3
shift 3
find_log_dir "$config" "$@"
find_command test.py "$config" "$checkpoint" --launcher pytorch "$@"
with_torchrun "$gpus"
