"""The Python half of the quick start, in a few iterations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmitpn.commands import quickstart

TOOL = Path(__file__).parents[2] / 'tools' / 'quickstart.py'
SHORT = (
    'train_cfg.max_iters={} train_cfg.val_interval=2 default_hooks.logger.interval=1'
    ' default_hooks.checkpoint.interval=2 train_dataloader.batch_size=2'
)


def run(folder: Path, *arguments: str, iterations: int) -> subprocess.CompletedProcess:
    options = SHORT.format(iterations).split()
    command = [sys.executable, str(TOOL), '--work-dir', 'work', '--num-train', '6', '--num-val', '5', *arguments]
    return subprocess.run(
        [*command, '--cfg-options', *options], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.slow
def test_leaves_what_it_promises_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    done = run(tmp_path, '--seed', '3', iterations=2)
    assert done.returncode == 0, done.stderr[-3000:]
    work = tmp_path / 'work'
    metrics = json.loads((work / 'metrics.json').read_text())
    (log,) = work.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert metrics['bbox_mAP'] == [entry['coco/bbox_mAP'] for entry in logged if 'coco/bbox_mAP' in entry][-1]
    assert (metrics['seed'], metrics['iterations'], metrics['resumed']) == (3, 2, False)
    assert {'torch', 'mmdet', 'mmitpn'} <= set(metrics['versions'])
    assert (work / 'dino_fast-itpn-nano_shapes.pth').stat().st_size > 10**6
    for name in ('training_curve.png', 'predictions.png'):
        with Image.open(work / name) as image:
            assert min(image.size) > 200
            assert len(image.convert('RGB').getcolors(2**24)) > 100  # something is drawn
    assert 'box AP' in done.stdout
    assert 'dino-4scale_fast-itpn-t_8xb2-12e_coco' in done.stdout

    done = run(tmp_path, '--seed', '3', '--resume', iterations=4)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((work / 'metrics.json').read_text())
    assert (metrics['iterations'], metrics['resumed']) == (4, True)
    assert len(list(work.glob('*/vis_data/scalars.json'))) == 2


def test_a_missing_config_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.main(['--config', 'nowhere.py']) == 2
    assert 'nowhere.py' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
