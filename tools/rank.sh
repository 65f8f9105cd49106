#!/usr/bin/env bash
# Runs one process of a distributed run and keeps its output; started by torchrun or srun, see tools/launch.sh.
#   bash tools/rank.sh LOG_DIR LAUNCH COMMAND...
# Appends the output of COMMAND to LOG_DIR/rank<N>.log; that of rank 0 is shown too. The first process that fails shows
# its last lines and writes them to LOG_DIR/failed_<LAUNCH>_<attempt>.txt. Exits with the status of COMMAND.
set -uo pipefail
log_dir=$1
launch=$2
shift 2
if [ -n "${TORCHELASTIC_RUN_ID:-}" ]; then
  # shellcheck disable=SC2153  # torchrun sets them
  rank=$RANK
  world=$WORLD_SIZE
  attempt=$TORCHELASTIC_RESTART_COUNT
else
  rank=$SLURM_PROCID
  world=$SLURM_NTASKS
  attempt=${SLURM_RESTART_COUNT:-0}
fi
export PYTHONUNBUFFERED=1
# train.py stops when torchrun dies; its own parent is this script.
if [ -n "${TORCHELASTIC_RUN_ID:-}" ]; then export MMITPN_LAUNCHER=$PPID; fi
mkdir -p "$log_dir" || exit 1
file=$log_dir/rank$rank.log
echo "=== $(date '+%Y-%m-%d %H:%M:%S') rank $rank of $world on $(uname -n), attempt $attempt" >>"$file" || exit 1
start=$(wc -c <"$file")

# A signal reaches the process itself as well, which may save a checkpoint: wait for it.
trap : HUP INT TERM USR1 USR2
if [ "$rank" -eq 0 ]; then
  "$@" 2>&1 | (trap '' HUP INT TERM USR1 USR2; exec tee -a "$file")
  status=${PIPESTATUS[0]}
else
  "$@" >>"$file" 2>&1
  status=$?
fi
if [ "$status" -eq 0 ]; then exit 0; fi

how="ended with status $status"
case $status in
  137) how='was killed (signal 9; often because memory ran out)' ;;
  139) how='crashed (signal 11)' ;;
  143) how='was stopped (signal 15)' ;;
esac
report=$log_dir/failed_${launch}_$attempt.txt
if (set -o noclobber; : >"$report") 2>/dev/null; then # one process per attempt creates this file
  {
    echo "error: rank $rank on $(uname -n) $how; the last lines of $file:"
    tail -c "+$((start + 1))" "$file" | tail -n 20 | sed 's/^/  | /'
  } | tee "$report" >&2
fi
exit "$status"
