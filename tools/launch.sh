# shellcheck shell=bash
# Functions of the launchers: tools/dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh source this file.
# Each process is started by tools/rank.sh, which keeps its output. PYTHON names the interpreter.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}

# fail MESSAGE: one line, exit status 2.
fail() {
  echo "error: $1" >&2
  exit 2
}

# want_number NAME VALUE [LEAST]: exits unless VALUE is an integer of at least LEAST.
want_number() {
  if ! [[ $2 =~ ^[0-9]+$ ]] || [ "$2" -lt "${3:-0}" ]; then
    fail "$1=$2: give an integer, ${3:-0} or more"
  fi
}

# find_log_dir CONFIG [options]: sets log_dir, the folder for the output of the ranks: LOG_DIR, or ranks/ in the work
# dir, which is that of the options, or else work_dirs/ and the name of the config.
find_log_dir() {
  local work_dir name=${1##*/}
  name=${name##*::}
  work_dir=work_dirs/${name%.py}
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --work-dir) work_dir=${2:-$work_dir} ;;
      --work-dir=*) work_dir=${1#*=} ;;
    esac
    shift
  done
  log_dir=${LOG_DIR:-$work_dir/ranks}
}

# find_command SCRIPT [arguments]: sets command, which starts one process.
find_command() {
  local launch
  launch=$(date +%Y%m%d_%H%M%S)_$$
  command=(bash "$tools/rank.sh" "$log_dir" "$launch" "$python" "$tools/$1" "${@:2}")
}

# find_resume [options of train.py]: sets resume. A restart runs the same command again, so the first attempt gets
# --resume too, which starts from the beginning if the work dir has no checkpoint.
# shellcheck disable=SC2034  # read by tools/dist_train.sh
find_resume() {
  resume=()
  if [ "${MAX_RESTARTS:-0}" = 0 ]; then return; fi
  resume=(--resume)
  while [ $# -gt 0 ]; do
    case $1 in
      --resume=auto) resume=() ;;
      --resume=*) fail "MAX_RESTARTS=$MAX_RESTARTS with $1: a restart resumes from the newest checkpoint; give --resume alone" ;;
      --resume)
        case ${2:-} in
          '' | auto | -*) resume=() ;;
          *) fail "MAX_RESTARTS=$MAX_RESTARTS with --resume $2: a restart resumes from the newest checkpoint; give --resume alone" ;;
        esac
        ;;
    esac
    shift
  done
}

# own_address HOST: prints the address of this machine that HOST sees.
own_address() {
  "$python" - "$1" <<'PYTHON'
import socket
import sys

family, kind, *_, address = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as probe:
    probe.connect(address)  # sends nothing
    print(probe.getsockname()[0])
PYTHON
}

# with_torchrun PROCESSES: replaces this shell with torchrun, which starts command PROCESSES times on this machine.
with_torchrun() {
  local nnodes=${NNODES:-1} node_rank=${NODE_RANK:-0} restarts=${MAX_RESTARTS:-0} address=127.0.0.1 port=${PORT:-}
  local own=127.0.0.1 host=0 meet
  want_number NNODES "$nnodes" 1
  want_number NODE_RANK "$node_rank"
  want_number MAX_RESTARTS "$restarts"
  if [ "$node_rank" -ge "$nnodes" ]; then
    fail "NODE_RANK=$node_rank with NNODES=$nnodes: the ranks of the machines go from 0 to NNODES - 1"
  fi
  if [ "$nnodes" -gt 1 ]; then
    address=${MASTER_ADDR:-}
    if [ -z "$address" ]; then fail "NNODES=$nnodes needs MASTER_ADDR, the address of the first machine (NODE_RANK=0)"; fi
    if [ -z "$port" ]; then
      port=29500
      echo "PORT is not set: all machines meet at port $port of $address" >&2
    fi
  fi
  want_number PORT "${port:=0}" # 0: any free port
  if [ "$nnodes" -gt 1 ] && [ "$restarts" -eq 0 ]; then
    meet=(--node-rank="$node_rank" --master-addr="$address" --master-port="$port")
  else
    # torch's static rendezvous above cannot restart on several machines when only one of them has noticed the failure.
    if [ "$node_rank" -eq 0 ]; then
      own=$address
      host=1
    else
      own=$(own_address "$address") || fail "MASTER_ADDR=$address: there is no way to this address from here"
    fi
    meet=(--rdzv-backend=c10d --rdzv-endpoint="$address:$port" --rdzv-id=mmitpn --rdzv-conf="is_host=$host" --local-addr="$own")
    # Each attempt gets its own store: in a shared one a restarted process finds the addresses of its dead peers.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  fi
  exec "$python" -m torch.distributed.run --nnodes="$nnodes" "${meet[@]}" --max-restarts="$restarts" \
    --nproc-per-node="$1" --no-python "${command[@]}"
}

# with_srun PARTITION JOB_NAME: replaces this shell with srun, which starts command in each task.
with_srun() {
  local args=(--job-name="$2" --kill-on-bad-exit=1) extra
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    find_step
  else
    args+=(--partition="$1")
    find_request
  fi
  read -r -a extra <<<"${SRUN_ARGS:-}"
  if [ -n "${PORT:-}" ]; then export MASTER_PORT=$PORT; fi
  exec srun "${args[@]}" ${extra[@]+"${extra[@]}"} "${command[@]}"
}

# find_request: adds the resources to request from Slurm to args, from GPUS, GPUS_PER_NODE, NTASKS, NTASKS_PER_NODE, CPUS_PER_TASK.
find_request() {
  local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8} tasks=${NTASKS:-} cpus=${CPUS_PER_TASK:-5}
  want_number GPUS "$gpus"
  want_number GPUS_PER_NODE "$per_node"
  want_number CPUS_PER_TASK "$cpus" 1
  if [ "$gpus" -eq 0 ] || [ "$per_node" -eq 0 ]; then
    if [ -z "$tasks" ]; then fail "no GPUs are asked for: NTASKS must say how many processes there are"; fi
    per_node=${NTASKS_PER_NODE:-}
  else
    if [ -n "$tasks" ] && [ "$tasks" != "$gpus" ]; then
      fail "NTASKS=$tasks with GPUS=$gpus: there is one process for each GPU; set GPUS alone, or GPUS=0 for CPUs"
    fi
    tasks=$gpus
    if [ "$per_node" -gt "$gpus" ]; then per_node=$gpus; fi
    args+=(--gres="gpu:$per_node")
  fi
  want_number NTASKS "$tasks" 1
  args+=(--ntasks="$tasks" --cpus-per-task="$cpus")
  if [ -n "$per_node" ]; then
    want_number NTASKS_PER_NODE "$per_node" 1
    args+=(--ntasks-per-node="$per_node")
  fi
}

# find_step: inside a job (sbatch, salloc) the resources are those of the job; adds what differs to args.
find_step() {
  local cpus=${CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-}}
  if [ -n "${GPUS:-}${GPUS_PER_NODE:-}" ]; then
    fail "GPUS and GPUS_PER_NODE mean nothing inside a job: give sbatch or salloc --gres=gpu:N --ntasks-per-node=N"
  fi
  if [ -n "${NTASKS:-}" ]; then
    want_number NTASKS "$NTASKS" 1
    args+=(--ntasks="$NTASKS")
  fi
  # Since Slurm 22.05 a step does not inherit this from its job.
  if [ -n "$cpus" ]; then args+=(--cpus-per-task="$cpus"); fi
}
