# shellcheck shell=bash
# Read by tools/dist_train.sh and tools/dist_test.sh: makes the array torchrun, from NNODES, NODE_RANK, MASTER_ADDR, PORT.
python=${PYTHON:-python}
nnodes=${NNODES:-1}
if [ "$nnodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
  echo "error: NNODES=$nnodes needs MASTER_ADDR, the address of the first machine (NODE_RANK=0)" >&2
  exit 2
fi
if [ -z "${PORT:-}" ]; then
  if [ "$nnodes" -gt 1 ]; then
    PORT=29500
    echo "PORT is not set: all machines meet at port $PORT of $MASTER_ADDR" >&2
  else
    PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
fi
# shellcheck disable=SC2034  # used by the script that reads this file
torchrun=(
  "$python" -m torch.distributed.run
  --nnodes="$nnodes" --node_rank="${NODE_RANK:-0}"
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT"
)
