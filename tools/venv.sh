#!/usr/bin/env bash
# Prints the folder of a stack's virtual environment: bash tools/venv.sh [onedl|openmmlab]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MMITPN_VENV:-$root/.venv}
case "${1:-onedl}" in
  onedl) echo "$venv" ;;
  *) echo "$venv-$1" ;;
esac
