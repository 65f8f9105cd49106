"""``torch.compile`` for a built model: its part that works on tensors only, as one graph where it is ours."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')
# Of a whole model: DINO and MaskDINO have these.
_WHOLE = ('forward_tensors', 'loss_tensors')
# Of the parts of any other model, in the order they run.
_PARTS = ('backbone', 'neck', 'decode_head', 'auxiliary_head')


def add_compile_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--compile`` to a command line."""
    parser.add_argument(
        '--compile',
        nargs='?',
        const='default',
        choices=MODES,
        metavar='MODE',
        help=f'compile the network with torch.compile (minutes at the first images); MODE: {", ".join(MODES)}'
        ' (default: default)',
    )


def compile_model(model: nn.Module, *, mode: str = 'default', backend: str = 'inductor', **options: Any) -> list[str]:
    """Compile a model in place; parameters, state dict and results stay.

    Of DINO and MaskDINO the whole network from normalized images to outputs of fixed size is one graph, and a training
    step is two, before and after the matching. Of other models backbone, neck, decode head and auxiliary heads are
    compiled, each by itself. The first size of images gives a graph for this size; the second size gives a graph for
    all sizes.

    Args:
        model: A detector, segmentor or classifier.
        mode: See :func:`torch.compile`. ``'reduce-overhead'`` captures CUDA graphs: for images of few sizes.
        backend: See :func:`torch.compile`.
        **options: Further arguments of :func:`torch.compile`, such as ``dynamic``.

    Returns:
        What was compiled, as ``'forward_tensors'`` or ``'backbone.forward'``.

    Raises:
        ValueError: If the mode is unknown, the compiler that the backend calls is not installed, or the model has none
            of these parts.
    """
    if mode not in MODES:
        raise ValueError(f'compile mode is {mode!r}; allowed: {", ".join(MODES)}')
    device = next((one.device.type for one in model.parameters()), 'cpu')
    if backend == 'inductor':
        _check_compiler(device)
        options['mode'] = None if mode == 'default' else mode
    compiled = [name for name in _WHOLE if hasattr(model, name)]
    for name in compiled:
        _compile_method(model, name, backend, options)
    if not compiled:
        for name in _PARTS:
            part = getattr(model, name, None)
            for module in part if isinstance(part, nn.ModuleList) else (part,):
                if isinstance(module, nn.Module):
                    method = 'forward_tensors' if hasattr(module, 'forward_tensors') else 'forward'
                    _compile_method(module, method, backend, options)
                    compiled.append(f'{name}.{method}')
    if not compiled:
        raise ValueError(
            f'{type(model).__name__} has nothing to compile: neither {" nor ".join(_WHOLE)}, nor one of'
            f' {", ".join(_PARTS)}'
        )
    print_log(f'compiled by {backend} at the first images: {", ".join(compiled)}', 'current')
    return compiled


def _compile_method(module: nn.Module, name: str, backend: str, options: dict[str, Any]) -> None:
    # A bound method, so that a copy of the module (an average of its weights) calls its own.
    function: Callable[..., Any] = torch.compile(getattr(type(module), name), backend=backend, **options)
    setattr(module, name, MethodType(function, module))


def _check_compiler(device: str) -> None:
    """Raise unless there is the compiler that inductor (on a CPU) or Triton (on a GPU) calls."""
    if device == 'cpu':
        language, package, names = 'C++', 'g++', (os.environ.get('CXX', 'g++'), 'g++', 'clang++')
    else:
        language, package, names = 'C', 'gcc', (os.environ.get('CC', 'gcc'), 'gcc', 'clang')
    if not any(map(shutil.which, names)):
        raise ValueError(
            f'compiling for {device} needs a {language} compiler (tried {", ".join(dict.fromkeys(names))}), and there'
            f' is none: apt-get install {package}'
        )
