"""The work of each process in the distributed tests of DINO."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from dino_cases import batch, build, tiny_config, total
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
# Objects in each image; process r gets image r.
EQUAL, UNEQUAL, EMPTY = [2, 2], [3, 1], [2, 0]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    cfg = tiny_config()
    # With nearly no noise, the denoising queries do not depend on the process that draws them.
    cfg.dn_cfg.update(label_noise_scale=1e-9, box_noise_scale=1e-6)
    return build(cfg).train()


def values(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().sum() for name, value in losses.items()}


def part(counts: list[int], rank: int) -> tuple:
    images, samples = batch(counts)
    return images[rank : rank + 1], samples[rank : rank + 1]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    model = make_model()
    model.load_state_dict(torch.load(Path(folder) / 'start.pth', weights_only=True))
    result = {'equal': values(model(*part(EQUAL, rank), mode='loss'))}
    result['unequal'] = values(model(*part(UNEQUAL, rank), mode='loss'))
    # No find_unused_parameters: a parameter without a gradient on one process raises in the second step.
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        total(parallel(*part(EMPTY, rank), mode='loss')).backward()
        optimizer.step()
    result['weights'] = model.state_dict()
    torch.save(result, Path(folder) / f'{rank}.pth')
    dist.destroy_process_group()
