"""What the launchers' toy is made of: a model of one weight, its data, a score, and a process that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS


@DATASETS.register_module()
class ToyData(torch.utils.data.Dataset):
    """Eight numbers."""

    @property
    def metainfo(self) -> dict[str, str]:
        return {'name': 'toy'}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {'inputs': torch.tensor(float(index))}


@MODELS.register_module()
class ToyModel(BaseModel):
    """Learns to double a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs: list[torch.Tensor], mode: str = 'tensor') -> dict[str, torch.Tensor] | list[dict]:
        numbers = torch.stack(inputs)
        error = (self.weight * numbers - 2 * numbers).abs()
        return {'loss': error.mean()} if mode == 'loss' else [{'error': float(value)} for value in error]


@METRICS.register_module()
class ToyScore(BaseMetric):
    """Says over how many numbers it is a mean, too."""

    def process(self, data_batch: object, data_samples: list[dict]) -> None:
        self.results += [sample['error'] for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {'error': sum(results) / len(results), 'numbers': len(results)}


@HOOKS.register_module()
class Die(Hook):
    """Notes each step; kills its process where TOY_DIE=RANK:STEP:FILE says so, unless FILE is there."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        step, rank = runner.iter, get_rank()
        with Path(runner.work_dir, f'steps.{rank}').open('a') as file:
            file.write(f'{step}\n')
        who, when, mark = os.environ.get('TOY_DIE', '-1:-1:').split(':')
        if (rank, step) == (int(who), int(when)) and not Path(mark).exists():
            Path(mark).touch()
            print(f'toy: rank {rank} dies at step {step}')
            os.kill(os.getpid(), signal.SIGKILL)
