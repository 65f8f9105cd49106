"""One thing to measure: a backbone, a pyramid, both, or a whole model, at one size."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ('backbone', 'pyramid', 'backbone+pyramid', 'detector')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from ``HxW``, or one number for a square."""
    sides = text.lower().split('x')
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise ArgumentTypeError(f'size is {text!r}; give HxW or one number, in pixels')
    return int(sides[0]), int(sides[-1])


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        part: One of ``PARTS``.
        size: Height and width of the pictures in pixels.
        arch: Of the backbone, unless ``part`` is ``'detector'``.
        config: The config file of the whole model.
        batch: Pictures at once.
        dtype: ``'fp32'``, or ``'bf16'`` under autocast.
        train: A training step (forward and backward) in place of inference.
        predict: Segmentors predict as their test_cfg says (sliding window) in place of one run to the logits.
        with_cp: Checkpointing of all that has it, see :func:`set_checkpointing`.
        objects: Objects a picture, in a training step of a detector.
        device: ``'cpu'`` or ``'cuda'``.
        backbone: More arguments of the backbone, such as ``token_gathering``; not for a ``'detector'``.
    """

    part: str
    size: tuple[int, int]
    arch: str = 'base'
    config: str | None = None
    batch: int = 1
    dtype: str = 'fp32'
    train: bool = False
    predict: bool = False
    with_cp: bool = False
    objects: int = 8
    device: str = 'cpu'
    backbone: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what a user can get wrong."""
        if self.part not in PARTS:
            raise ValueError(f'part is {self.part!r}; allowed: {", ".join(map(repr, PARTS))}')
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype is {self.dtype!r}; allowed: {", ".join(map(repr, DTYPES))}')
        if (self.config is None) == (self.part == 'detector'):
            raise ValueError(f"part is {self.part!r} and config {self.config!r}; a config goes with 'detector' only")
        if self.backbone and self.part == 'detector':
            raise ValueError(f'backbone is {self.backbone}; that of a detector has its arguments in the config')
        if self.batch < 1 or len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f'batch is {self.batch} and size {self.size}; give whole numbers of at least 1')

    @property
    def name(self) -> str:
        """How a table calls it."""
        if self.config is not None:
            return self.config
        return f'{self.arch} {self.part}'


def set_checkpointing(model: nn.Module, *, on: bool) -> list[str]:
    """Switch checkpointing of all that has it.

    That is every module with a ``with_cp`` (the backbone and the pyramid of this project, ResNet and others of the
    hosts), and the layers of this project's DINO encoder and decoder.

    Args:
        model: The model.
        on: Whether to recompute.

    Returns:
        The names of those modules; ``''`` is the model itself.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, 'with_cp', None), bool):
            module.with_cp = on
        elif isinstance(getattr(module, 'num_recomputed', None), int):
            module.num_recomputed = len(module.layers) if on else 0
        else:
            continue
        found.append(name)
    return found


def _autocast(case: Case) -> AbstractContextManager:
    if case.dtype == 'fp32':
        return nullcontext()
    return torch.autocast(case.device, dtype=DTYPES[case.dtype])


def _network(case: Case) -> tuple[nn.Module, Any]:
    """The network of a case without a config, and what it takes."""
    # Each part is imported by its own folder: a process whose memory is measured takes nothing else.
    height, width = case.size
    pictures = torch.randn(case.batch, 3, height, width, device=case.device)
    from mmitpn import FastITPN

    backbone = FastITPN(case.arch, **case.backbone)
    if case.part == 'backbone':
        return backbone, pictures
    from mmitpn import ITPNPyramid

    pyramid = ITPNPyramid(backbone.out_channels)
    if case.part == 'backbone+pyramid':
        return nn.Sequential(backbone, pyramid), pictures
    maps = [
        torch.randn(case.batch, channels, -(-height // stride), -(-width // stride), device=case.device)
        .to(DTYPES[case.dtype])
        .to(memory_format=torch.channels_last)  # as the backbone gives them
        for channels, stride in zip(backbone.out_channels, backbone.strides, strict=True)
    ]
    return pyramid, maps


def build(case: Case) -> tuple[nn.Module, Callable[[], Any]]:
    """Make a model and one step of it.

    Args:
        case: What to measure.

    Returns:
        The model, and a function without arguments that runs one step and keeps nothing.
    """
    if case.config is not None:
        from .host_model import build_from_config, inference_call, loss_call, make_samples

        model = build_from_config(case.config).to(case.device)
        inputs = torch.randn(case.batch, 3, *case.size, device=case.device)
        samples = make_samples(
            model, case.size, batch=case.batch, objects=case.objects, device=torch.device(case.device)
        )
        infer = inference_call(model, inputs, samples, predict=case.predict)
        loss = loss_call(model, inputs, samples)
    else:
        model, given = _network(case)
        model.to(case.device)

        def infer() -> Any:
            return model(given)

        def loss() -> Tensor:
            return sum(x.float().square().mean() for x in infer())

    model.train(case.train)
    if case.with_cp and not set_checkpointing(model, on=True):
        raise ValueError(f'nothing in {case.name} can be checkpointed; leave with_cp out')

    def step() -> None:
        if not case.train:
            with torch.inference_mode(), _autocast(case):
                infer()
            return
        with _autocast(case):
            value = loss()
        value.backward()
        model.zero_grad(set_to_none=True)

    return model, step
