"""The training curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmitpn.visualization import draw_curve, find_scalars, read_history
from mmitpn.visualization.curves import plot_history


def write(path: Path, entries: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return path


def train_line(step: int, loss: float, **more: float) -> dict:
    return {'lr': 1e-4, 'loss': loss, 'loss_cls': loss / 2, 'iter': step, 'step': step, 'time': 0.1, **more}


def test_reads_iterations_and_metrics(tmp_path: Path) -> None:
    log = write(
        tmp_path / 'scalars.json',
        [train_line(50, 3.0), train_line(100, 2.0), {'coco/bbox_mAP': 0.25, 'time': 0.1, 'step': 100}],
    )
    history = read_history(log)
    assert history.train['loss'] == [(50, 3.0), (100, 2.0)]
    assert history.metrics == {'coco/bbox_mAP': [(100, 0.25)]}


def test_a_metric_numbered_by_epoch_is_placed_at_its_iteration(tmp_path: Path) -> None:
    lines = [
        train_line(50, 3.0, epoch=1),
        {'coco/bbox_mAP': 0.1, 'step': 1},
        train_line(100, 2.0, epoch=2),
        {'coco/bbox_mAP': 0.2, 'step': 2},
    ]
    history = read_history(write(tmp_path / 'scalars.json', lines))
    assert history.metrics['coco/bbox_mAP'] == [(50, 0.1), (100, 0.2)]


def test_a_resumed_run_replaces_what_it_did_again(tmp_path: Path) -> None:
    write(tmp_path / '20260101_000000/vis_data/scalars.json', [train_line(50, 3.0), train_line(100, 9.0)])
    write(tmp_path / '20260102_000000/vis_data/scalars.json', [train_line(100, 2.0), train_line(150, 1.0)])
    history = read_history(find_scalars(tmp_path))
    assert history.train['loss'] == [(50, 3.0), (100, 2.0), (150, 1.0)]


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / 'scalars.json', [train_line(50, 3.0)])
    log.write_text(log.read_text() + '{"lr": 1e-4, "lo')
    assert read_history(log).train['loss'] == [(50, 3.0)]


@pytest.mark.parametrize(
    'metrics',
    [
        [],
        [{'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.3, 'coco/segm_mAP': 0.1, 'step': 40}],
        [{'mIoU': 31.0, 'aAcc': 70.0, 'step': 40}],
        [{'something_else': 1.0, 'step': 40}],
    ],
)
def test_draws(tmp_path: Path, metrics: list[dict]) -> None:
    log = write(tmp_path / 'scalars.json', [train_line(20, 3.0), train_line(40, 2.0), *metrics])
    drawn = draw_curve(read_history(log), tmp_path / 'new' / 'curve.png', title='a run')
    with Image.open(drawn) as image:
        assert image.format == 'PNG'
        assert image.size == (1000, 800)
        assert len(image.convert('L').getcolors()) > 10


def test_negative_losses_are_in_the_plot(tmp_path: Path) -> None:
    """The cosine loss of pre-training; other losses have an axis that starts at 0."""
    bottoms = []
    for sign in (1, -1):
        log = write(tmp_path / f'{sign}.json', [train_line(20, 0.9 * sign), train_line(40, 0.8 * sign)])
        bottoms.append(plot_history(read_history(log)).axes[0].get_ylim()[0])
    assert bottoms[0] == 0
    assert bottoms[1] < -0.9


def test_missing_and_empty_logs_are_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no folder'):
        find_scalars(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='once an iteration has been logged'):
        find_scalars(tmp_path)
    with pytest.raises(FileNotFoundError, match='no log'):
        read_history(tmp_path / 'scalars.json')
    with pytest.raises(ValueError, match='no training iteration'):
        read_history(write(tmp_path / 'scalars.json', []))
    with pytest.raises(ValueError, match='no training iteration'):
        read_history(write(tmp_path / 'scalars.json', [{'coco/bbox_mAP': 0.1, 'step': 1}]))


def test_a_damaged_log_is_reported_with_its_line(tmp_path: Path) -> None:
    log = tmp_path / 'scalars.json'
    log.write_text('not json\n' + json.dumps(train_line(1, 1.0)) + '\n')
    with pytest.raises(ValueError, match=r'line 1 of .*scalars\.json is not JSON'):
        read_history(log)
    log.write_text('[1]\n' + json.dumps(train_line(1, 1.0)) + '\n')
    with pytest.raises(ValueError, match='no JSON object'):
        read_history(log)
