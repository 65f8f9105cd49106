"""The blocks of docs/predict.md, run in order on the demo images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('supervision')

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings('ignore')
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo').symlink_to(ROOT / 'demo')
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/predict.md').read_text(encoding='utf-8'), re.DOTALL)
    assert len(blocks) == 4
    values: dict = {}
    for block in blocks:
        exec(compile(block, 'docs/predict.md', 'exec'), values)  # noqa: S102
    printed = capsys.readouterr().out
    assert 'Result(shapes_1.jpg, ' in printed
    assert 'shapes_2.jpg ' in printed
    names = [f'shapes_{number}.jpg' for number in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / 'predictions').iterdir()) == names
    assert len(values['detections']) == len(values['annotations']) > 0
    assert len(values['result']) > 0
