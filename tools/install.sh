#!/usr/bin/env bash
# Creates the virtual environment of this project, with exact versions, for one of the two OpenMMLab stacks. It needs no
# compiler: mmcv is installed without its C++ extension, and mmitpn.ops replaces the extension.
#   bash tools/install.sh [--stack onedl|openmmlab] [--tests] [--compiled] [--cuda 12|13] [--only-dependencies] [--repair]
# The environment is $MMITPN_VENV or .venv; that of the openmmlab stack has "-openmmlab" appended to its name.
# --tests              also installs the requirements of the tests and of the site (tests/run.sh passes it)
# --compiled           compiles mmcv's own operators: needs a C++ compiler and Python's headers, about 10 minutes on 2
#                      cores; with CUDA operators if there are a GPU and a matching nvcc, or with FORCE_CUDA=1
# --cuda 12|13         the CUDA release torch is built for; by default the newest that the GPU's driver supports
# --only-dependencies  does not install this project itself (for the layer of a container image that rarely changes)
# --repair             reinstalls into a complete environment and restores packages that were changed since
# PYTHON names the interpreter (3.10 to 3.13; to 3.12 for openmmlab), MAX_JOBS the number of parallel compilers.
# TORCH_INDEX_URL is one more package index that torch may come from, in a new environment; the one that PyTorch's page
# "Get Started" names for CPU has builds without the CUDA libraries, which take 4 GB.
# It can be run again at any time: a complete environment is left unchanged, an interrupted installation is finished. The
# options --compiled and --cuda of an environment are kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[install] %s\n' "$*"; }
die() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

stack=onedl
tests='' compiled='' cuda='' only_dependencies='' repair=''
while [ $# -gt 0 ]; do
  case "$1" in
    --stack) [ $# -ge 2 ] || die "--stack needs a name: onedl or openmmlab"; stack=$2; shift ;;
    --stack=*) stack=${1#--stack=} ;;
    --tests) tests=1 ;;
    --compiled) compiled=1 ;;
    --cuda) [ $# -ge 2 ] || die "--cuda needs a release: 12 or 13"; cuda=$2; shift ;;
    --cuda=*) cuda=${1#--cuda=} ;;
    --only-dependencies) only_dependencies=1 ;;
    --repair) repair=1 ;;
    -h|--help) sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown option '$1'; allowed: --stack onedl|openmmlab, --tests, --compiled, --cuda 12|13, --only-dependencies, --repair" ;;
  esac
  shift
done
case "$stack" in onedl) newest=13 ;; openmmlab) newest=12 ;; *) die "unknown stack '$stack'; allowed: onedl, openmmlab" ;; esac
case "$cuda" in ''|12|13) ;; *) die "--cuda is '$cuda'; allowed: 12, 13" ;; esac

# --- the existing environment ---------------------------------------------------------------------------------------
venv=$(bash tools/venv.sh "$stack")
py=$venv/bin/python
chosen=$venv/.mmitpn-options   # options of an earlier run, which are kept
if [ -f "$chosen" ]; then
  read -r chosen_compiled chosen_cuda <"$chosen"
  [ "$chosen_compiled" = python ] || compiled=1
  [ -n "$cuda" ] || [ "$chosen_cuda" = auto ] || cuda=$chosen_cuda
fi
[ -z "$compiled" ] || [ "$cuda" != 13 ] ||
  die "--compiled builds mmcv for torch 2.10.0, which is made for CUDA 12 (torch 2.14 needs C++20, which mmcv's build does not ask for); leave --cuda 13 out"

# The newest CUDA release that the driver supports, as 12.4; nothing without an NVIDIA GPU.
driver_cuda() { nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]* Version: *\([0-9][0-9.]*\).*/\1/p' | head -n 1 || true; }
torch=torch
if [ -n "$compiled" ] || [ "$cuda" = 12 ]; then
  torch='torch-cuda12'
elif [ -z "$cuda" ]; then
  driver=$(driver_cuda)
  if [ -n "$driver" ] && [ "${driver%%.*}" -lt 12 ]; then
    die "the GPU's driver supports CUDA $driver, and torch needs 12 or newer: update the driver to 525 or newer, or install for the CPU with --cuda 13"
  elif [ -n "$driver" ] && [ "${driver%%.*}" -lt 13 ]; then
    torch='torch-cuda12'
    say "the GPU's driver supports CUDA $driver: $(sed -n 's/^torch==/torch /p' requirements/torch-cuda12.txt), the newest for it, is installed; driver 580 or newer runs $(sed -n 's/^torch==/torch /p' requirements/torch.txt)"
  fi
fi
mmcv_list=requirements/mmcv-$stack${compiled:+-compiled}.txt

# The stamps are written last: an environment without one, or with another content, is not complete.
stamp=$venv/.mmitpn-complete
want="$(cat requirements/{build,"$torch",common,"$stack"}.txt "$mmcv_list" tools/install.sh | cksum) $PWD"
tests_stamp=$venv/.mmitpn-tests
want_tests=$(cat requirements/{tests,docs}.txt | cksum)
has() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
if [ -n "${TORCH_INDEX_URL:-}" ] && there=$("$py" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null); then
  say "torch $there is in $venv already: TORCH_INDEX_URL is used for a new environment only"
fi
[ -z "$repair" ] || rm -f "$stamp" "$tests_stamp"
if has "$stamp" "$want" && { [ -z "$tests" ] || has "$tests_stamp" "$want_tests"; }; then
  say "$venv is complete ($stack stack)"
  exit 0
fi

# --- requirements of the machine, checked before anything is created -------------------------------------------------
fits() { "$1" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; }
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.10}; do
    fits "$candidate" && { echo "$candidate"; return; }
  done
  return 1
}
if [ -x "$py" ] && "$py" -m pip --version >/dev/null 2>&1; then
  python=$py
  fits "$py" || die "$venv has $("$py" --version), and the $stack stack runs on 3.10 to 3.$newest; remove it or set MMITPN_VENV to another folder"
else
  python=$(find_python) || die "no Python 3.10 to 3.$newest among '${PYTHON:-python3 python3.11 python3.12 python3.13 python3.10}';" \
    "install one (for example 'apt-get install python3 python3-venv') or name it with PYTHON=..."
  "$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python cannot make virtual environments; 'apt-get install python3-venv'"
fi
if [ -n "$compiled" ]; then
  header=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
  [ -f "$header" ] || die "Python's C headers are missing ($header), which --compiled needs; 'apt-get install python3-dev', or leave --compiled out"
  command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler ('${CXX:-c++}'), which --compiled needs; 'apt-get install build-essential', or leave --compiled out"
fi
if ! "$py" -c 'import torch' 2>/dev/null; then
  made_here=''; [ -e "$venv" ] || made_here=1
  mkdir -p "$venv"
  room=$(df -Pk "$venv" | awk 'NR == 2 {print int($4 / 1048576)}')
  if [ "$room" -lt 9 ]; then
    [ -z "$made_here" ] || rmdir "$venv"
    die "$room GB free at $venv, but 9 GB are needed (torch with its CUDA libraries takes 6); free some or set MMITPN_VENV to another disk"
  fi
fi

# --- the environment ------------------------------------------------------------------------------------------------
# shellcheck disable=SC2154  # status is assigned in it
trap 'status=$?; [ $status -eq 0 ] || say "stopped before the end; run the same command again to resume from here" >&2' EXIT
step() { printf '[install] %4d s  %s\n' "$SECONDS" "$*"; }
pip() { "$py" -m pip --disable-pip-version-check "$@"; }
rm -f "$stamp" "$tests_stamp"
if [ "$python" = "$py" ]; then
  step "1/6 resuming in $venv"
else
  step "1/6 making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
echo "$([ -n "$compiled" ] && echo compiled || echo python) ${cuda:-auto}" >"$chosen"

step "2/6 $(tail -n 2 "requirements/$torch.txt" | paste -sd ' ') (the longest step: 6 GB with the CUDA libraries on x86-64)"
pip install -qq -r requirements/build.txt
pip install -qq -r "requirements/$torch.txt" -c requirements/common.txt -c "requirements/$stack.txt" \
  ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}

step "3/6 the $stack packages and what they need"
# --no-deps: the lists are complete, and opencv's headless build replaces the one that needs the libraries of a display.
# Both have the same files: if the other one was installed since, the files of the headless one are restored.
lists=(-r requirements/common.txt -r "requirements/$stack.txt")
[ -z "$tests" ] || lists+=(-r requirements/tests.txt -r requirements/docs.txt)
pip install -qq --no-deps --no-build-isolation "${lists[@]}"
others=$("$py" - <<'PY'
from importlib.metadata import distributions
print(*sorted({d.metadata['Name'] for d in distributions()} & {'opencv-python', 'opencv-contrib-python', 'opencv-contrib-python-headless'}))
PY
)
if [ -n "$others" ]; then
  # shellcheck disable=SC2086  # several names
  pip uninstall -qq -y $others
  pip install -qq --no-deps --force-reinstall "$(grep '^opencv-python-headless==' "requirements/$stack.txt")"
fi

# --- mmcv: its Python files, or compiled ----------------------------------------------------------------------------
# The wheel is kept outside pip's cache, which does not know for which torch a wheel was compiled.
mmcv=$(tail -n 1 "$mmcv_list")
kept=${XDG_CACHE_HOME:-$HOME/.cache}/mmitpn/wheels
build_wheel() { # FOLDER COMMAND...: runs the command with -w, and moves the wheel to FOLDER if it succeeds
  local folder=$1 building log
  shift
  mkdir -p "$folder"
  building=$(mktemp -d "$folder/building.XXXXXX")
  log=$building.log
  if ! "$@" -w "$building" "$mmcv" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -rf "$building"
    die "building $mmcv failed; the last lines are above, all of them in $log"
  fi
  mv "$building"/*.whl "$folder/" && rm -rf "$building" "$log"
}
wheel_of() { compgen -G "$1/$(echo "${mmcv%%==*}-${mmcv##*==}" | tr - '?')-$2.whl" | head -n 1 || true; }
if [ -z "$compiled" ]; then
  step "4/6 $mmcv, the Python files"
  # In pip's isolated build, where no torch is, mmcv's setup.py leaves the extension out.
  [ -n "$(wheel_of "$kept" 'py*-none-any')" ] ||
    build_wheel "$kept" env PIP_CONSTRAINT=requirements/build.txt PIP_BUILD_CONSTRAINT=requirements/build.txt \
      "$py" -m pip --disable-pip-version-check wheel -q --no-cache-dir --no-deps
  wheel=$(wheel_of "$kept" 'py*-none-any')
  [ -n "$wheel" ] || die "$mmcv was built with its C++ extension in $kept, which is not wanted; remove that folder and run this again"
else
  # CUDA operators only if there are a GPU and a matching nvcc.
  with_cuda=0
  if [ "${FORCE_CUDA:-0}" = 1 ] || "$py" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    torch_cuda=$("$py" -c 'import torch; print(torch.version.cuda)')
    nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
    nvcc_cuda=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p') || nvcc_cuda=
    if [ "${nvcc_cuda%%.*}" = "${torch_cuda%%.*}" ]; then
      with_cuda=1
    else
      die "--compiled for a GPU, but nvcc ${nvcc_cuda:-is missing} does not match torch's CUDA $torch_cuda; install that toolkit, or leave --compiled out"
    fi
  fi
  tag=$("$py" -c "import sys, platform, torch; print(f'torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}-cuda$with_cuda')")
  if [ -z "$(wheel_of "$kept/$stack-$tag" '*')" ]; then
    step "4/6 compiling $mmcv with ${MAX_JOBS:-$(nproc)} jobs, CUDA operators: $([ $with_cuda = 1 ] && echo yes || echo no) (about 10 minutes on 2 cores)"
    hide=(); [ $with_cuda = 1 ] || hide=(CUDA_VISIBLE_DEVICES=)
    build_wheel "$kept/$stack-$tag" env "${hide[@]}" MMCV_WITH_OPS=1 FORCE_CUDA=$with_cuda MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
      "$py" -m pip --disable-pip-version-check wheel -q --no-cache-dir --no-deps --no-build-isolation
  else
    step "4/6 $mmcv was compiled before; using the kept wheel"
  fi
  wheel=$(wheel_of "$kept/$stack-$tag" '*')
fi
pip uninstall -qq -y mmcv mmcv-lite onedl-mmcv
pip install -qq --no-deps "$wheel"
if [ -n "$only_dependencies" ]; then
  say "the dependencies are there; run this again without --only-dependencies to finish"
  exit 0
fi

step "5/6 mmitpn"
pip install -qq --no-deps --no-build-isolation -e .
[ -n "$compiled" ] || "$py" -m mmitpn.ops install || die "mmcv in $venv did not take the operators of mmitpn"

step "6/6 checking that everything imports"
"$py" -m mmitpn.doctor || die "the environment at $venv does not work; the lines above say what is wrong"
[ -z "$tests" ] || echo "$want_tests" >"$tests_stamp"
echo "$want" >"$stamp"
step "done: $venv ($stack stack). 'source $venv/bin/activate' to use it"
