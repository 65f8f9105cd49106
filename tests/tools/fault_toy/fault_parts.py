"""What the toy for faults is made of, and the faults: TOY_FAULT=KIND:STEP:FILE, once, which FILE remembers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from PIL import Image
from torch.nn import functional as F


@DATASETS.register_module()
class ToyImages(torch.utils.data.Dataset):
    """Images of a folder, turned at random."""

    metainfo = {'name': 'toy'}  # noqa: RUF012

    def __init__(self, data_root: str) -> None:
        self.files = sorted(Path(data_root).glob('*.png'))

    def __len__(self) -> int:
        return len(self.files)

    def get_data_info(self, index: int) -> dict[str, str]:
        return {'img_path': str(self.files[index])}

    def __getitem__(self, index: int) -> dict:
        image = np.asarray(Image.open(self.files[index])).astype(np.float32) / 255
        turned = np.rot90(image, np.random.randint(4)) + 0.1 * np.random.rand()  # noqa: NPY002
        return {'inputs': torch.from_numpy(turned.copy()), 'data_samples': Sample(str(self.files[index]))}


class Sample:
    def __init__(self, img_path: str) -> None:
        self.img_path = img_path


@MODELS.register_module()
class ToyNetwork(BaseModel):
    """Learns the mean of a image, with dropout."""

    bad = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))

    def forward(self, inputs: list[torch.Tensor], data_samples: list, mode: str = 'tensor') -> dict:
        x = torch.stack(inputs).flatten(1)
        loss = (self.layers(F.dropout(x, 0.3)).squeeze(1) - x.mean(1)).square().mean()
        return {'loss_toy': loss * float('nan') if self.bad else loss}


@HOOKS.register_module()
class Fault(Hook):
    """Notes each step with its images, and causes the fault in TOY_FAULT; TOY_RANK is its process."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        with Path(runner.work_dir, f'steps.{get_rank()}').open('a') as file:
            names = ' '.join(Path(sample.img_path).stem for sample in data_batch['data_samples'])
            file.write(f'{runner.iter} {batch_idx} {names}\n')
        kind, step, mark = os.environ.get('TOY_FAULT', ':-1:').split(':')
        if runner.iter != int(step) or get_rank() != int(os.environ.get('TOY_RANK', '0')) or Path(mark).exists():
            return
        Path(mark).touch()
        getattr(self, kind)(runner)

    def kill(self, _runner) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, _runner) -> None:
        # A scheduler signals all processes of a job.
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    def worker(self, _runner) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    def write(self, _runner) -> None:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # written, and not yet renamed

    def nan(self, runner) -> None:
        model = runner.model
        getattr(model, 'module', model).bad = True

    def launcher(self, _runner) -> None:
        os.kill(int(os.environ['MMITPN_LAUNCHER']), signal.SIGKILL)
        time.sleep(4)  # the toy's steps are shorter than the time in which it is noticed

    def all(self, _runner) -> None:
        mine = f'TOY_FAULT={os.environ["TOY_FAULT"]}'.encode()
        for folder in Path('/proc').glob('[0-9]*'):
            command = (folder / 'cmdline').read_bytes()
            if b'train.py' in command and b'python' in command.split(b'\0')[0] and mine in _environment(folder):
                os.kill(int(folder.name), signal.SIGKILL)


def _environment(folder: Path) -> list[bytes]:
    try:
        return (folder / 'environ').read_bytes().split(b'\0')
    except OSError:
        return []
