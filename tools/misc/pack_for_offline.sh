#!/usr/bin/env bash
# Bundles the wheels that a Python lacks, for a machine without a network: copy the bundle there and run its install.sh.
#   bash tools/misc/pack_for_offline.sh --python PYTHON [--installed FREEZE] -o DIR|FILE.tar|FILE.tar.gz [more options]
# --python PYTHON        version of the other machine's Python (3.12), or an interpreter here like that one: what it has
#                        is taken as installed there
# --installed FREEZE     output of "python -m pip freeze" there: what it names stays there, in whatever version
# -o, --out              folder or archive to write
# --stack onedl|openmmlab  OpenMMLab packages; onedl by default, openmmlab runs on Python up to 3.12
# --cuda 12|13           the CUDA release that torch is built for, if torch is not there; 13 by default
# --platform NAME        manylinux_2_28 and this machine's architecture by default, which includes older ones
# --list                 only prints what is lacking
# The bundle: wheels/ with those of mmitpn and of the versions in requirements/, and install.sh, which installs them with
# pip and runs "mmitpn doctor". mmcv comes without its C++ extension, as tools/install.sh installs it.
# This machine needs a network and pip: that of $PYTHON, of the project's environment, or of python3. torch with its CUDA
# libraries takes 3 GB; TORCH_INDEX_URL is one more package index that it may come from.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '[pack] %s\n' "$*" >&2; }
die() { printf '[pack] error: %s\n' "$*" >&2; exit 2; }

target='' freeze='' out='' stack=onedl cuda=13 platform='' list=''
options='--python, --installed, -o, --out, --stack, --cuda, --platform, --list'
while [ $# -gt 0 ]; do
  case "$1" in
    --list) list=1; shift; continue ;;
    -h|--help) sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --python|--installed|-o|--out|--stack|--cuda|--platform) [ $# -ge 2 ] || die "$1 needs a value" ;;
    *) die "unknown option '$1'; allowed: $options" ;;
  esac
  case "$1" in
    --python) target=$2 ;;
    --installed) freeze=$2 ;;
    -o|--out) out=$2 ;;
    --stack) stack=$2 ;;
    --cuda) cuda=$2 ;;
    --platform) platform=$2 ;;
  esac
  shift 2
done
case "$stack" in onedl) newest=13 ;; openmmlab) newest=12 ;; *) die "--stack is '$stack'; allowed: onedl, openmmlab" ;; esac
case "$cuda" in 12) torch='torch-cuda12' ;; 13) torch=torch ;; *) die "--cuda is '$cuda'; allowed: 12, 13" ;; esac
[ -n "$target" ] || die "--python is missing; give a version such as 3.12, or the path of an interpreter"
[ -n "$out" ] || [ -n "$list" ] || die "-o is missing; give a folder, FILE.tar or FILE.tar.gz"
[ -z "$freeze" ] || [ -f "$freeze" ] || die "--installed: no file '$freeze'; write it there with: python -m pip freeze > FILE"
[ -z "$out" ] || [ ! -e "$out" ] || die "'$out' is there already; remove it or give another name"

# --- the other machine's Python -----------------------------------------------------------------------------------------
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case "$target" in
  3.[0-9]|3.[0-9][0-9]) version=$target ;;
  *)
    version=$("$target" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
      die "--python is '$target', which is neither a version such as 3.12 nor an interpreter that runs here"
    if [ -z "$freeze" ]; then
      freeze=$work/freeze.txt
      "$target" -m pip --disable-pip-version-check freeze >"$freeze" || die "'$target -m pip freeze' failed"
      [ -s "$freeze" ] || freeze=
    fi
    ;;
esac
minor=${version#3.}
((10 <= minor && minor <= newest)) || die "Python is $version, and the $stack stack runs on 3.10 to 3.$newest"

packer=${PYTHON:-$(bash "$root/tools/venv.sh" "$stack")/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$packer" ] || packer=python3
"$packer" -m pip --version >/dev/null 2>&1 || die "'$packer' has no pip; name another interpreter with PYTHON=..."
pip() { "$packer" -m pip --disable-pip-version-check "$@"; }

# --- what it lacks ------------------------------------------------------------------------------------------------------
lists=("$root"/requirements/{"$torch",build,common,"$stack","mmcv-$stack"}.txt)
"$packer" - "$stack" "$work" "$freeze" "${lists[@]}" <<'PY' || exit 2
import re
import sys
from pathlib import Path

BUILD_ONLY = {'wheel', 'ninja'}  # of requirements/build.txt
CV2 = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')
SAME = {'opencv-python-headless': CV2, 'mmcv-lite': ('mmcv-lite', 'mmcv')}  # distributions of the same module
OFFICIAL = {'mmcv', 'mmcv-lite', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain'}


def stop(text: str) -> None:
    sys.exit(f'[pack] error: {text}')


def read(file: str) -> dict[str, str]:
    """Distribution -> version, or '' where the line has none (name @ URL, -e ...#egg=name)."""
    found = {}
    for line in Path(file).read_text(encoding='utf-8').splitlines():
        match = re.match(r'([A-Za-z0-9][\w.-]*)\s*(?:==\s*([^\s;]+)|@)', line) or re.search(r'#egg=([\w.-]+)()', line)
        if match:
            found[re.sub(r'[-_.]+', '-', match[1]).lower()] = match[2] or ''
    return found


stack, work, freeze, torch_list, *lists = sys.argv[1:]
there = read(freeze) if freeze else {}
if freeze and not there:
    stop(f"--installed: {freeze} has no line such as numpy==2.2.6; write it there with: python -m pip freeze > FILE")
others = OFFICIAL if stack == 'onedl' else {'onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection', 'onedl-mmsegmentation'}
clash = sorted(others & set(there))
if clash:
    other = {'onedl': 'openmmlab', 'openmmlab': 'onedl'}[stack]
    stop(f'{clash[0]} is there, of the other stack: pack with --stack {other}, or uninstall it there')
torch = read(torch_list)
if ('torch' in there) != ('torchvision' in there):
    has, lacks = ('torch', 'torchvision') if 'torch' in there else ('torchvision', 'torch')
    stop(f'{has} {there[has]} is there without {lacks}, which has to fit it: install both there, or neither')
wanted = {}
for one in lists:
    wanted.update(read(one))
for name in BUILD_ONLY | ({'setuptools'} if 'torch' in there else set()):  # torch asks for setuptools
    wanted.pop(name, None)
lacking = {}
for name, version in wanted.items():
    same = next((one for one in SAME.get(name, (name,)) if one in there), None)
    if same is None:
        lacking[name] = version
    elif there[same] not in ('', version):
        print(f'[pack] {same} {there[same]} stays (the tested version is {name} {version})', file=sys.stderr)
mmcv = {name: lacking.pop(name) for name in ('onedl-mmcv', 'mmcv-lite') if name in lacking}
parts = {'torch': {} if 'torch' in there else torch, 'mmcv': mmcv, 'others': lacking}
for part, packages in parts.items():
    text = ''.join(f'{name}=={version}\n' for name, version in packages.items())
    Path(work, f'{part}.txt').write_text(text, encoding='utf-8')
PY
if [ -n "$list" ]; then
  cat "$work"/{torch,mmcv,others}.txt
  exit 0
fi

# --- the wheels ---------------------------------------------------------------------------------------------------------
tags=(--only-binary=:all: --implementation cp --python-version "$version" --abi "cp3$minor" --abi abi3 --abi none)
platform=${platform:-manylinux_2_28_$(uname -m)}
if [[ $platform =~ ^manylinux_2_([0-9]+)_(.+)$ ]]; then
  for ((glibc = BASH_REMATCH[1]; glibc >= 5; glibc--)); do tags+=(--platform "manylinux_2_${glibc}_${BASH_REMATCH[2]}"); done
  for old in manylinux2014 manylinux2010 manylinux1 linux; do tags+=(--platform "${old}_${BASH_REMATCH[2]}"); done
else
  tags+=(--platform "$platform")
fi
bundle=$work/mmitpn-offline
wheels=$bundle/wheels
mkdir -p "$wheels"
download() { pip download -q "${tags[@]}" -d "$wheels" "$@"; }

build_pure() { # REQUIREMENT OR FOLDER [pip's options]: builds a wheel that any platform can install
  local made=$work/made
  rm -rf "$made"
  PIP_CONSTRAINT=$root/requirements/build.txt PIP_BUILD_CONSTRAINT=$root/requirements/build.txt \
    pip wheel -q --no-cache-dir --no-deps -w "$made" "$@" >"$work/log" 2>&1 ||
    die "no wheel of $1 for Python $version on $platform, and building one failed: $(tail -n 1 "$work/log")"
  compgen -G "$made/*-none-any.whl" >/dev/null ||
    die "no wheel of $1 for Python $version on $platform, and what pip builds here ($(ls "$made")) is for this machine alone"
  mv "$made"/*.whl "$wheels/"
}

if [ -s "$work/torch.txt" ]; then
  say "torch and what it needs"
  download -r "$work/torch.txt" -c "$root/requirements/common.txt" -c "$root/requirements/$stack.txt" \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} || die "pip did not find them all; its lines are above"
fi
if [ -s "$work/others.txt" ]; then
  say "$(grep -c . "$work/others.txt") packages of requirements/"
  if ! download --no-deps -r "$work/others.txt" 2>"$work/log"; then
    while read -r one; do  # some have no wheel on the index
      download --no-deps "$one" 2>"$work/log" || build_pure "$one"
    done <"$work/others.txt"
  fi
fi
if [ -s "$work/mmcv.txt" ]; then
  say "$(cat "$work/mmcv.txt"), its Python files"
  build_pure "$(cat "$work/mmcv.txt")"
fi
say "mmitpn"
mkdir "$work/source"
for name in setup.py pyproject.toml MANIFEST.in LICENSE README.md model-index.yml mmitpn configs requirements tools; do
  [ ! -e "$root/$name" ] || cp -R "$root/$name" "$work/source/"
done
rm -rf "$work/source/mmitpn/.mim"
isolation=()
"$packer" -c 'import setuptools, wheel' 2>/dev/null && isolation=(--no-build-isolation)
build_pure "$work/source" "${isolation[@]}"

# --- the bundle ---------------------------------------------------------------------------------------------------------
cat >"$bundle/install.sh" <<EOF_INSTALL
#!/usr/bin/env bash
# Installs mmitpn ($stack stack) and what it needs into a Python $version, without a network: bash install.sh [PYTHON]
# PYTHON is python3 by default. For an environment of its own, which sees what the machine's Python has:
#   python3 -m venv --system-site-packages ENV && bash install.sh ENV/bin/python
set -euo pipefail
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
python=\${1:-python3}
case "\$python" in */*) python=\$(cd "\$(dirname "\$python")" && pwd)/\${python##*/} ;; esac
die() { printf 'error: %s\n' "\$*" >&2; exit 2; }
version=\$("\$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "'\$python' does not run"
[ "\$version" = $version ] || die "the wheels are for Python $version, and '\$python' is \$version; run: bash install.sh PYTHON"
"\$python" -m pip --disable-pip-version-check install -q --no-index --no-deps "\$here"/wheels/*.whl
cd / # so that Python imports what was installed
"\$python" -m mmitpn.ops status || "\$python" -m mmitpn.ops install
"\$python" -m mmitpn doctor
EOF_INSTALL
case "$out" in
  *.tar) tar -C "$work" -cf "$work/out" mmitpn-offline ;;
  *.tar.gz|*.tgz) tar -C "$work" -czf "$work/out" mmitpn-offline ;;
  *) mv "$bundle" "$work/out" ;;
esac
mkdir -p "$(dirname "$out")"
mv "$work/out" "$out"
say "$out: $(du -sh "$out" | cut -f 1), for Python $version on $platform; there: bash install.sh"
