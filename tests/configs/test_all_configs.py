"""What every config of the project must be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)

# Each folder in a process of its own, forked from one that has imported nothing of mmitpn or of the hosts' registries.
BUILD = """
import os, sys, torch, mmcv.ops, mmengine.runner
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
def build(paths):
    for path in paths:
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        with torch.device('meta'):
            print('built', path, type(MODELS.build(cfg.model)).__name__, flush=True)
paths, failed = sys.argv[1:], 0
for folder in dict.fromkeys(map(os.path.dirname, paths)):
    child = os.fork()
    if not child:
        build([path for path in paths if os.path.dirname(path) == folder])
        os._exit(0)
    failed |= os.waitpid(child, 0)[1]
sys.exit(bool(failed))
"""


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_is_short(path):
    limit = 30 if path.parent.name != 'quickstart' else 70
    assert len(path.read_text().splitlines()) < limit


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
def test_each_folder_builds_in_a_clean_process():
    done = subprocess.run(
        [sys.executable, '-c', BUILD, *map(str, CONFIGS)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = {line.split()[1]: line.split()[2] for line in done.stdout.splitlines() if line.startswith('built ')}
    assert built == {str(path): Config.fromfile(path).model.type.rpartition('.')[2] for path in CONFIGS}


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_is_in_its_table_and_metafile(path):
    folder = path.parent
    assert path.name in (folder / 'README.md').read_text()
    assert f'Config: configs/{folder.name}/{path.name}' in (folder / 'metafile.yml').read_text()
    assert f'configs/{folder.name}/metafile.yml' in (ROOT / 'model-index.yml').read_text()
