"""The doctor in environments that really are broken: virtual ones, of links to the packages of this one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from mmitpn.installation import HOSTS, ROOT, find_stack, requirement
from mmitpn.ops.install import SOURCE

SITE = Path(sysconfig.get_paths()['purelib'])
STACK = find_stack()
REPAIR = f'{ROOT}/tools/install.sh --stack {STACK} --repair'
SUFFIX = {'onedl': '', 'openmmlab': '-openmmlab'}[STACK]  # as tools/install.sh names environments
LIBCUDA = """
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
int cuInit(unsigned int flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""


class Broken:
    """A virtual environment with links to this one's packages.

    Args:
        folder: Where it is made.
        without: Beginnings of names in site-packages that are left out.
    """

    def __init__(self, folder: Path, *without: str) -> None:
        self.folder = folder / f'broken{SUFFIX}'
        self.repair = f'MMITPN_VENV={folder}/broken bash {REPAIR}'
        venv.EnvBuilder(symlinks=True).create(self.folder)
        self.python = self.folder / 'bin' / 'python'
        (self.site,) = self.folder.glob('lib/python*/site-packages')
        for path in SITE.iterdir():
            if path.suffix != '.pth' and not path.name.startswith(('__editable__', *without)):
                (self.site / path.name).symlink_to(path)

    def distribution(self, name: str, version: str) -> None:
        """Add the metadata of an installed distribution."""
        folder = self.site / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')

    def copy(self, package: str, *without: str) -> Path:
        """Make a package of links, without some of its files."""
        place = self.site / package
        if place.is_symlink():
            place.unlink()
        place.mkdir()
        for path in (SITE / package).iterdir():
            if not path.name.startswith((*without, '__pycache__')):
                (place / path.name).symlink_to(path)
        return place

    def doctor(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run the doctor there."""
        kept = {name: value for name, value in os.environ.items() if name != 'MMITPN_VENV'}
        return subprocess.run(
            [str(self.python), '-m', 'mmitpn.doctor', *arguments],
            env={**kept, 'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1', **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )


def problems(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Each problem and what fixes it; everything was checked, and nothing crashed."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    for row in ('python', 'torch', 'stack', *HOSTS, 'GPU', 'mmitpn'):
        assert re.search(rf'^{row} ', done.stdout, re.MULTILINE), row
    found = dict(re.findall(r'^problem: (.*)\n  fix: (.+)$', done.stdout, re.MULTILINE))
    assert f'{len(found)} problem(s)' in done.stdout
    return found


def test_nothing_is_installed(tmp_path):
    broken = Broken(tmp_path, '')
    config = ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py'
    done = broken.doctor('--config', str(config))
    found = problems(done)
    for name in ('torch', 'torchvision', 'numpy', 'cv2', *HOSTS):
        (fix,) = [fix for text, fix in found.items() if text.startswith(f'{name} does not import')]
        where = f'MMITPN_VENV={tmp_path}/broken' if name == 'mmcv' else f'{broken.python} -m pip install '
        assert fix.startswith(where)
    assert re.search(r'^data +- +not checked', done.stdout, re.MULTILINE)


def test_torch_is_damaged(tmp_path):
    broken = Broken(tmp_path, 'torch', 'mm')
    (broken.site / 'torch').mkdir()
    (broken.site / 'torch/__init__.py').write_text('raise OSError("libcudnn.so.9: cannot open shared object file")\n')
    broken.distribution('torch', '2.14.1')
    found = problems(broken.doctor())
    (fix,) = [fix for text, fix in found.items() if text.startswith('torch does not import (OSError: libcudnn')]
    assert f'{broken.python} -m pip install --force-reinstall --no-deps torch==2.14.1' in fix


@pytest.mark.slow
def test_mmcv_without_operators(tmp_path):
    """The files of mmcv without its compiled library; this project's operators take its place."""
    broken = Broken(tmp_path, 'mmcv')
    place = broken.copy('mmcv', '_ext')
    found = problems(broken.doctor())
    (fix,) = [fix for text, fix in found.items() if text.startswith("mmcv's operators do not import")]
    assert fix == f'{broken.python} -m mmitpn.ops install'
    # The frameworks fail for the same reason: the same fix.
    assert {fix for text, fix in found.items() if 'mmcv._ext' in text} == {fix}
    (place / '_ext.py').write_text(SOURCE)
    done = broken.doctor()
    assert done.returncode == 0, done.stdout
    assert 'mmcv.ops     mmitpn' in done.stdout


@pytest.mark.slow
def test_the_wrong_numpy_and_no_mmpretrain(tmp_path):
    broken = Broken(tmp_path, 'numpy-', 'mmpretrain', 'onedl_mmpretrain')
    broken.distribution('numpy', {'onedl': '1.26.4', 'openmmlab': '2.2.6'}[STACK])
    found = problems(broken.doctor())
    pip = f'{broken.python} -m pip install --no-deps'
    assert set(found.values()) == {f'{pip} {requirement(STACK, name)}' for name in ('mmpretrain', 'numpy')}
    assert len(found) == 2
    assert not [text for text in found if text.startswith(('mmdet', 'mmseg'))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('cc') is None, reason='no C compiler (cc) to make a driver with')
def test_operators_and_driver_of_another_cuda(tmp_path):
    import torch

    if torch.version.cuda is None:
        pytest.skip('torch is built without CUDA here')
    broken = Broken(tmp_path, 'mmcv')
    for path in SITE.glob('mmcv-*'):
        (broken.site / path.name).symlink_to(path)
    place = broken.copy('mmcv', '_ext')
    (place / '_ext.py').write_text('def __getattr__(name):\n    return lambda *args: "11.8"\n')
    (tmp_path / 'libcuda.c').write_text(LIBCUDA)
    library = ['-shared', '-fPIC', '-o', str(tmp_path / 'libcuda.so.1'), str(tmp_path / 'libcuda.c')]
    subprocess.run(['cc', *library], check=True)
    done = broken.doctor(LD_LIBRARY_PATH=str(tmp_path))
    found = problems(done)
    assert re.search(r'^GPU +2, not used +.*the driver supports CUDA 11\.4', done.stdout, re.MULTILINE)
    (fix,) = [fix for text, fix in found.items() if text.startswith("mmcv's operators are built for CUDA 11.8")]
    assert fix == broken.repair
    (fix,) = [fix for text, fix in found.items() if 'the driver supports CUDA 11.4; update it to 5' in text]
    assert fix.startswith('sudo ')


def test_nothing_heavy_is_imported_at_the_top():
    code = 'import sys, mmitpn.doctor; print({"torch", "numpy", "mmengine", "mmcv"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'
