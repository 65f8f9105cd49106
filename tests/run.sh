#!/usr/bin/env bash
# Sets the environment up and runs the tests: bash tests/run.sh [--stack onedl|openmmlab] [pytest's own arguments]
# The tests run in as many processes as there are cores, at most four, one file in one process; `-n 0` runs them in this
# one (for a debugger).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=onedl
case "${1:-}" in
  --stack) stack=${2:?"--stack needs a name: onedl or openmmlab"}; shift 2 ;;
  --stack=*) stack=${1#--stack=}; shift ;;
esac
bash tools/install.sh --stack "$stack" --tests
venv=$(bash tools/venv.sh "$stack")
cores=$(nproc)
workers=(-n "$((cores < 4 ? cores : 4))" --dist loadscope --no-loadscope-reorder)
case " $* " in *no:xdist*) workers=() ;; esac
echo "[tests] $stack stack"
exec "$venv/bin/python" -m pytest "${workers[@]}" "$@"
