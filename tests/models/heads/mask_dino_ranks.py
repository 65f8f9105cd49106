"""The work of each process in the distributed test of MaskDINO."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


class LossModule(nn.Module):
    """A head whose forward pass is its loss, as DistributedDataParallel needs it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor], samples: list) -> dict[str, Tensor]:
        return self.head.loss(maps, samples)


def fix_points() -> None:
    """The same random points for every mask on every process."""
    real = torch.rand

    def rand(*size, **kwargs):
        size = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        if len(size) != 3 or size[2] != 2:
            return real(*size, **kwargs)
        return real(size[1], 2, generator=torch.Generator().manual_seed(size[1])).expand(size).clone()

    torch.rand = rand


def work(rank: int, folder: str, heads: dict[str, nn.Module], cases: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    fix_points()
    own = {
        name: ([x[rank : rank + 1] for x in maps], samples[rank : rank + 1]) for name, (maps, samples) in cases.items()
    }
    # Tensors that a process is started with share their memory with the other process.
    results = {kind: _learn(deepcopy(head), own) for kind, head in heads.items()}
    torch.save(results, Path(folder) / f'{rank}.pth')
    dist.destroy_process_group()


def _learn(head: nn.Module, cases: dict) -> dict[str, dict[str, Tensor]]:
    """The losses of each case, and the weights after a step on each."""
    result = {name: {k: v.detach() for k, v in head.loss(*args).items()} for name, args in cases.items()}
    # No find_unused_parameters: a parameter without a gradient on one process raises in the next step.
    parallel = DistributedDataParallel(LossModule(head))
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-4)
    for args in cases.values():
        optimizer.zero_grad()
        sum(parallel(*args).values()).backward()
        optimizer.step()
    return {**result, 'weights': head.state_dict()}
