"""What the processes of test_same_result.py run: a tool of the project, a hook that notes losses, and points that stay.

The patches hold in these processes alone.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class NoteLosses(Hook):
    """Writes the losses and the images of every step, one file a process."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        del batch_idx
        images = [Path(sample.img_path).stem for sample in data_batch['data_samples']]
        losses = {name: float(value) for name, value in outputs.items() if 'loss' in name}
        with Path(runner.work_dir, f'losses.{get_rank()}').open('a') as file:
            file.write(json.dumps({'images': images, 'losses': losses}) + '\n')


def run_tool(root: Path, arguments: list[str], folder: Path, variables: dict[str, str], log: Path) -> None:
    """Run a tool as the command line does, in a folder, with a file in the place of the terminal."""
    os.chdir(folder)
    os.environ.update(variables)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    _fix_points_of_mask_dino()
    sys.argv = [str(root / arguments[0]), *arguments[1:]]
    runpy.run_path(sys.argv[0], run_name='__main__')


def _fix_points_of_mask_dino() -> None:
    # MaskDINO compares masks at random points: which image gets which points depends on how the batch is split, and no
    # setting changes that. Here every image gets the points of one seed.
    from mmitpn.models.mask_dino.criterion import MaskDINOCriterion
    from mmitpn.models.mask_dino.matching import MatchingCosts

    draw, sample = MatchingCosts.draw_points, MaskDINOCriterion._sample_points

    def draw_points(costs: Any, num_layers: int, batch_size: int, device: Any) -> Any:
        torch.manual_seed(0)
        return draw(costs, num_layers, 1, device).expand(-1, batch_size, -1, -1)

    def sample_points(criterion: Any, masks: Any) -> Any:
        torch.manual_seed(0)
        return sample(criterion, masks)

    MatchingCosts.draw_points, MaskDINOCriterion._sample_points = draw_points, sample_points
