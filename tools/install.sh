#!/usr/bin/env bash
# Makes the virtual environment of this project, with exact versions, for one of the two OpenMMLab stacks.
#   bash tools/install.sh [--stack onedl|openmmlab] [--only-dependencies] [--repair]
# The environment is $MMITPN_VENV or .venv; the openmmlab stack gets its own beside it, with "-openmmlab" appended.
# --only-dependencies leaves this project itself out (the layer of a container image that seldom changes).
# PYTHON names the interpreter (3.10 to 3.12), MAX_JOBS the number of compilers at once; FORCE_CUDA=1 builds mmcv's CUDA
# operators where no GPU is visible, as when an image is built. TORCH_INDEX_URL is one more package index that torch may
# come from, in a new environment: https://download.pytorch.org/whl/cpu has builds without the CUDA libraries.
# Run it again at any time: what is whole is left alone, what was interrupted is finished; --repair looks at an
# environment that was whole once more, and puts back what was changed in it since.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[install] %s\n' "$*"; }
die() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

stack=onedl
only_dependencies=
repair=
while [ $# -gt 0 ]; do
  case "$1" in
    --stack) [ $# -ge 2 ] || die "--stack needs a name: onedl or openmmlab"; stack=$2; shift 2 ;;
    --stack=*) stack=${1#--stack=}; shift ;;
    --only-dependencies) only_dependencies=1; shift ;;
    --repair) repair=1; shift ;;
    -h|--help) sed -n '2,11p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$1'; allowed: --stack onedl|openmmlab, --only-dependencies, --repair" ;;
  esac
done
case "$stack" in onedl|openmmlab) ;; *) die "unknown stack '$stack'; allowed: onedl, openmmlab" ;; esac

# The stamp is written last: an environment without it, or with another content, is not whole.
venv=$(bash tools/venv.sh "$stack")
stamp=$venv/.mmitpn-complete
want=$(cat requirements/{build,torch,common,tests,"$stack","mmcv-$stack"}.txt tools/install.sh | cksum)
if [ -n "${TORCH_INDEX_URL:-}" ] && there=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null); then
  say "torch $there is in $venv already: TORCH_INDEX_URL is used for a new environment only"
fi
[ -z "$repair" ] || rm -f "$stamp"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want $PWD" ]; then
  say "$venv is complete ($stack stack)"
  exit 0
fi

# --- what the machine must have, checked before anything is made ---------------------------------------------------
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
    "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo "$candidate"; return; }
  done
  return 1
}
python=$(find_python) || die "no Python 3.10, 3.11 or 3.12 among '${PYTHON:-python3 python3.11 python3.12 python3.10}';" \
  "install one (for example 'apt-get install python3 python3-venv python3-dev') or name it with PYTHON=..."
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python cannot make virtual environments; 'apt-get install python3-venv'"
header=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
[ -f "$header" ] || die "Python's C headers are missing ($header); 'apt-get install python3-dev'"
command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler ('${CXX:-c++}'), which mmcv's operators need; 'apt-get install build-essential'"

free_gb() { mkdir -p "$1" && df -Pk "$1" | awk 'NR == 2 {print int($4 / 1048576)}'; }
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  made_here=; [ -e "$venv" ] || made_here=1
  room=$(free_gb "$venv")
  if [ "$room" -lt 10 ]; then
    [ -z "$made_here" ] || rmdir "$venv"
    die "$room GB free at $venv, but 10 GB are needed (torch with its CUDA libraries takes 7); free some or set MMITPN_VENV to another disk"
  fi
fi

# --- the environment ------------------------------------------------------------------------------------------------
trap 'status=$?; [ $status -eq 0 ] || say "stopped before the end; run the same command again to go on from here" >&2' EXIT
rm -f "$stamp"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  say "1/5 making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
else
  say "1/5 going on with $venv"
fi
py=$venv/bin/python
pip() { "$py" -m pip --disable-pip-version-check "$@"; }

say "2/5 torch and the build tools (about 3 minutes, 7 GB with the CUDA libraries on x86-64)"
pip install -qq -r requirements/build.txt
pip install -qq -r requirements/torch.txt -c requirements/common.txt -c "requirements/$stack.txt" \
  ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}

say "3/5 the $stack packages and what they need (about 1 minute)"
# --no-deps: the lists are complete, and opencv's headless build stands for the one that needs a display's libraries.
pip install -qq --no-deps --no-build-isolation -r requirements/common.txt -r "requirements/$stack.txt" -r requirements/tests.txt

# --- mmcv's operators: CUDA ones only where a GPU and a fitting nvcc are both there --------------------------------
cuda=0
if [ "${FORCE_CUDA:-0}" = 1 ] || "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  torch_cuda=$("$py" -c 'import torch; print(torch.version.cuda)')
  nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
  nvcc_cuda=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p') || nvcc_cuda=
  if [ "${nvcc_cuda%%.*}" = "${torch_cuda%%.*}" ]; then
    cuda=1
  else
    [ "${FORCE_CUDA:-0}" != 1 ] || die "FORCE_CUDA=1, but nvcc ${nvcc_cuda:-is missing} does not fit torch's CUDA $torch_cuda; install that toolkit"
    say "a GPU is here, but nvcc ${nvcc_cuda:-is missing} does not fit torch's CUDA $torch_cuda: mmcv's CUDA operators are not built."
    say "lost: their speed. Deformable attention runs on the GPU in pure PyTorch (slower, more memory); RoIAlign, NMS and"
    say "other compiled operators fall back to torchvision or are missing there. To get them: install CUDA toolkit $torch_cuda and run this again."
  fi
fi
# The built wheel is kept by torch version, interpreter and CUDA: pip's own cache knows only the interpreter.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mmitpn/wheels
tag=$("$py" -c "import sys, platform, torch; print(f'torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}-cuda$cuda')")
wheels=$cache/$stack-$tag
mmcv=$(tail -n 1 "requirements/mmcv-$stack.txt")
pattern=$(echo "${mmcv%%==*}-${mmcv##*==}" | tr - '?')
if ! ls "$wheels"/$pattern-*.whl >/dev/null 2>&1; then
  jobs=${MAX_JOBS:-$(nproc)}
  say "4/5 compiling $mmcv with $jobs jobs, CUDA operators: $([ $cuda = 1 ] && echo yes || echo no) (about 10 minutes on 2 cores; started $(date +%H:%M))"
  mkdir -p "$wheels"
  building=$(mktemp -d "$wheels/building.XXXXXX")
  log=$building.log
  hide=(); [ $cuda = 1 ] || hide=(CUDA_VISIBLE_DEVICES= )
  if ! env "${hide[@]}" MMCV_WITH_OPS=1 FORCE_CUDA=$cuda MAX_JOBS="$jobs" \
      "$py" -m pip --disable-pip-version-check wheel -q --no-cache-dir --no-deps --no-build-isolation -w "$building" "$mmcv" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -rf "$building"
    die "compiling $mmcv failed; the last lines are above, all of them in $log"
  fi
  mv "$building"/*.whl "$wheels/" && rm -rf "$building" "$log"
else
  say "4/5 $mmcv was compiled before; using the kept wheel"
fi
pip install -qq --no-deps --force-reinstall "$wheels"/$pattern-*.whl
if [ -n "$only_dependencies" ]; then
  say "the dependencies are there; run this again without --only-dependencies to finish"
  exit 0
fi
pip install -qq --no-deps --no-build-isolation -e .

say "5/5 checking that everything imports"
"$py" -m mmitpn.doctor || die "the environment at $venv does not work; the lines above say what is wrong"
echo "$want $PWD" >"$stamp"
say "done: $venv ($stack stack). 'source $venv/bin/activate' to use it"
