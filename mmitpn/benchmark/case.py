"""What is measured: a backbone, a pyramid, both, or the model of a config, at one image size."""

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
class BenchmarkCase:
    """A model, its input and the step that is measured.

    Attributes:
        part: One of ``PARTS``.
        size: Height and width of the images in pixels.
        arch: Of the backbone, unless ``part`` is ``'detector'``.
        config: The config file, if ``part`` is ``'detector'``.
        batch: Number of images.
        dtype: ``'fp32'``, or ``'bf16'`` under autocast.
        train: A training step (forward and backward) instead of inference.
        predict: Segmentors predict as their test_cfg says (sliding window) instead of one forward to the logits.
        with_cp: Activation checkpointing wherever it is supported, see :func:`set_checkpointing`.
        objects: Number of objects per image, in a training step of a detector.
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
            raise ValueError(f'batch is {self.batch} and size {self.size}; give integers of at least 1')

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f'{self.arch} {self.part}' if self.config is None else self.config


def checkpointing_switches(model: nn.Module) -> list[tuple[str, nn.Module, str, int]]:
    """The modules of a model whose activation checkpointing can be switched.

    That is every module with a ``with_cp`` (the backbone and the pyramid of this project, ResNet and others of the
    frameworks), and the encoder and decoder of this project's DINO, with the number of layers that they recompute.

    Args:
        model: The model.

    Returns:
        Name of the module (``''`` is the model itself), module, attribute, and the attribute's value where everything
        is checkpointed.
    """
    switches = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, 'with_cp', None), bool):
            switches.append((name, module, 'with_cp', True))
        elif isinstance(getattr(module, 'num_recomputed', None), int):
            switches.append((name, module, 'num_recomputed', len(module.layers)))
    return switches


def set_checkpointing(model: nn.Module, *, on: bool) -> list[str]:
    """Switch activation checkpointing of everything in a model that supports it.

    Args:
        model: The model.
        on: Whether to recompute activations in the backward pass.

    Returns:
        The names of the modules; ``''`` is the model itself.
    """
    switches = checkpointing_switches(model)
    for _, module, attribute, everything in switches:
        setattr(module, attribute, everything if on else type(everything)(0))
    return [name for name, *_ in switches]


def build_case(case: BenchmarkCase) -> tuple[nn.Module, Callable[[], Any]]:
    """Build a model and one step of it.

    Args:
        case: What to measure.

    Returns:
        The model, and a function without arguments that runs one step and keeps nothing.

    Raises:
        ValueError: If ``with_cp`` is set and nothing in the model can be checkpointed.
    """
    if case.config is not None:
        from mmitpn.testing.demo_inputs import build_from_config, inference_call, loss_call, make_samples

        model = build_from_config(case.config).to(case.device)
        inputs = torch.randn(case.batch, 3, *case.size, device=case.device)
        samples = make_samples(
            model, case.size, batch=case.batch, objects=case.objects, device=torch.device(case.device)
        )
        infer = inference_call(model, inputs, samples, predict=case.predict)
        loss = loss_call(model, inputs, samples)
    else:
        model, features = _build_part(case)
        model.to(case.device)

        def infer() -> Any:
            return model(features)

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


def _build_part(case: BenchmarkCase) -> tuple[nn.Module, Any]:
    """The network of a case without a config, and its input."""
    # Imported one by one: a process whose memory is measured imports nothing else.
    height, width = case.size
    images = torch.randn(case.batch, 3, height, width, device=case.device)
    from mmitpn import FastITPN

    backbone = FastITPN(case.arch, **case.backbone)
    if case.part == 'backbone':
        return backbone, images
    from mmitpn import ITPNPyramid

    pyramid = ITPNPyramid(backbone.out_channels)
    if case.part == 'backbone+pyramid':
        return nn.Sequential(backbone, pyramid), images
    maps = [
        torch.randn(case.batch, channels, -(-height // stride), -(-width // stride), device=case.device)
        .to(DTYPES[case.dtype])
        .to(memory_format=torch.channels_last)  # as the backbone returns them
        for channels, stride in zip(backbone.out_channels, backbone.strides, strict=True)
    ]
    return pyramid, maps


def _autocast(case: BenchmarkCase) -> AbstractContextManager:
    if case.dtype == 'fp32':
        return nullcontext()
    return torch.autocast(case.device, dtype=DTYPES[case.dtype])
