#!/usr/bin/env bash
# Trains with several processes on this machine, or on several machines: one process for each GPU (or on CPUs).
#   bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: run it on each with NNODES (their number), NODE_RANK (0 for the first), MASTER_ADDR (the first one's
# address) and, if 29500 is taken there, PORT. On one machine PORT is a free one unless it is given.
# PYTHON names the interpreter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]; GPUS is the number of processes, 1 or more" >&2
  exit 2
fi
config=$1
gpus=$2
shift 2
# shellcheck source=tools/torchrun.sh
source "$here/torchrun.sh"
exec "${torchrun[@]}" --nproc_per_node="$gpus" "$here/train.py" "$config" --launcher pytorch "$@"
