#!/usr/bin/env bash
# Entrypoint of the images; it also works outside of them, in an activated environment.
#   train CONFIG [GPUS] [options of tools/train.py]              GPUS processes, one by default
#   test CONFIG CHECKPOINT [GPUS] [options of tools/test.py]
#   quickstart [options of tools/quickstart.py]
#   predict, weights, data, swap [options of mmitpn COMMAND]
#   doctor [options of python -m mmitpn.doctor]
#   any other command: bash, python tools/...
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT as for tools/dist_train.sh; GPUS is required.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}

usage() { printf 'error: %s\n' "$*" >&2; exit 2; }
# Whether an argument is a number, that is, GPUS.
is_number() { [[ ${1:-} =~ ^[0-9]+$ ]]; }

command=${1:-help}
[ $# -eq 0 ] || shift
case "$command" in
  train|test)
    if [ "$command" = train ]; then needs=(CONFIG); else needs=(CONFIG CHECKPOINT); fi
    for ((i = 1; i <= ${#needs[@]}; i++)); do
      # CONFIG may be mmdet::NAME, so the tools report missing files.
      if [ $# -lt $i ] || [[ ${!i} == -* ]]; then usage "$command needs ${needs[*]}; $command ${needs[*]} [GPUS] [options]"; fi
    done
    files=("${@:1:${#needs[@]}}")
    shift ${#needs[@]}
    if is_number "${1:-}"; then
      exec bash "$root/tools/dist_$command.sh" "${files[@]}" "$@"
    elif [ "${NNODES:-1}" != 1 ]; then
      usage "NNODES=$NNODES needs GPUS, the number of processes on each machine: $command ${needs[*]} GPUS [options]"
    fi
    exec "$python" "$root/tools/$command.py" "${files[@]}" "$@"
    ;;
  quickstart) exec "$python" "$root/tools/quickstart.py" "$@" ;;
  predict|weights|data|swap) exec "$python" -m mmitpn "$command" "$@" ;;
  doctor) exec "$python" -m mmitpn.doctor "$@" ;;
  help|-h|--help) sed -n '3,9s/^# \{0,3\}//p' "${BASH_SOURCE[0]}" ;;
  *)
    type -P "$command" >/dev/null || usage "no command '$command'; allowed: train, test, quickstart, predict, weights, data, swap, doctor, help, or any program"
    exec "$command" "$@"
    ;;
esac
