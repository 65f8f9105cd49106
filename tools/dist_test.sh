#!/usr/bin/env bash
# Evaluates with several processes on this machine, or on several machines: one process for each GPU (or on CPUs).
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: as for tools/dist_train.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]; GPUS is the number of processes, 1 or more" >&2
  exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
# shellcheck source=tools/torchrun.sh
source "$here/torchrun.sh"
exec "${torchrun[@]}" --nproc_per_node="$gpus" "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
