"""Training runs that studies compare: run by the tools of the repository, scored once, and kept in a file of scores.

A script of a study puts this folder on ``sys.path`` and imports it as ``training_scores``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from mmitpn.atomic import write_atomic
from mmitpn.datasets import generate_shapes
from mmitpn.engine import find_latest_checkpoint

PROJECTS = Path(__file__).resolve().parent
ROOT = PROJECTS.parent
TEST_IMAGES, TEST_SEED = 400, 2000
FINISHED = 'finished'

Scores = dict[str, dict[str, dict[str, float]]]  # task -> method -> seed -> score


def run_tool(*command: str | Path) -> None:
    """Run a tool of the repository, such as ``'tools/train.py'``, in its folder; configs may import any study."""
    studies = [str(folder) for folder in sorted(PROJECTS.iterdir()) if folder.is_dir()]
    path = os.pathsep.join(filter(None, (*studies, os.environ.get('PYTHONPATH'))))
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}, check=True)


def run_training(
    config: str | Path, folder: Path, options: Sequence[str], *, again: bool = False, amp: bool = False
) -> None:
    """Train, or resume a run that was stopped, or do nothing where it is complete.

    Args:
        config: The config.
        folder: The work dir; an empty file in it marks a complete run.
        options: ``--cfg-options``.
        again: Also train where the run is complete.
        amp: Mixed precision: bf16 on a CPU, which is faster only where the CPU computes in it (avx512_bf16, amx_bf16).
    """
    if (folder / FINISHED).is_file() and not again:
        return
    (folder / FINISHED).unlink(missing_ok=True)
    flags = [*([] if again else ['--resume']), *(['--amp'] if amp else [])]
    run_tool('tools/train.py', config, *flags, '--no-report', '--work-dir', folder, '--cfg-options', *options)
    (folder / FINISHED).touch()


def test_set_options(task: str, root: Path) -> list[str]:
    """``--cfg-options`` that evaluate the quick start's ``'det'`` or ``'seg'`` on 400 other images, made if missing.

    With the quick start's own 100 the choice of images moves single scores by a point or two.
    """
    root = root.resolve()
    generate_shapes(root, 1, TEST_IMAGES, seed=TEST_SEED)  # does nothing if the images are there
    if task == 'seg':
        return [f'test_dataloader.dataset.data_root={root}/ade/ADEChallengeData2016/']
    ground_truth = f'test_evaluator.ann_file={root}/coco/annotations/instances_val2017.json'
    return [f'test_dataloader.dataset.data_root={root}/coco/', ground_truth]


def evaluate(config: str | Path, folder: Path, metric: str, options: Sequence[str]) -> float:
    """Evaluate the last checkpoint of a training run with ``tools/test.py``.

    Args:
        config: The config.
        folder: The work dir of the training run.
        metric: Name of the score, without what stands before a slash.
        options: ``--cfg-options``.
    """
    test = folder / 'test'
    checkpoint = find_latest_checkpoint(folder)
    run_tool('tools/test.py', config, checkpoint, '--no-report', '--work-dir', test, '--cfg-options', *options)
    metrics = json.loads((test / 'test_metrics.json').read_text(encoding='utf-8'))['metrics']
    return next(value for key, value in metrics.items() if key.rsplit('/', 1)[-1] == metric)


class ScoreFile:
    """Scores of training runs in a JSON file, written after each.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores: Scores = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}

    def fill(self, task: str, method: str, seed: int, score: Callable[[], float], *, again: bool = False) -> None:
        """Run a training whose score is missing; ``again`` also one that has one."""
        scores = self.scores.setdefault(task, {}).setdefault(method, {})
        if str(seed) in scores and not again:
            return
        scores[str(seed)] = score()
        self.save()

    def save(self) -> None:
        """Write the file: a run that is killed meanwhile leaves the scores before or after, never a part."""
        write_atomic(self.path, (json.dumps(self.scores, indent=1) + '\n').encode())

    def table(self, title: str, base: str) -> Table:
        """All scores, their means, and the differences of the means to that of the method ``base``."""
        table = Table(title=title)
        for heading in ('task', 'method', 'seeds', 'mean', f'to {base}'):
            table.add_column(heading)
        for task, methods in self.scores.items():
            for method, scores in methods.items():
                if scores:
                    table.add_row(task, method, *_cells(scores, methods.get(base)))
        return table


def _cells(scores: dict[str, float], base: dict[str, Any] | None) -> tuple[str, str, str]:
    average = mean(scores.values())
    change = average - mean(base.values()) if base else float('nan')
    return ' '.join(f'{score:.3f}' for score in scores.values()), f'{average:.3f}', f'{change:+.3f}'
