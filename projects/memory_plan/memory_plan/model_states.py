"""Memory that does not depend on the images: parameters, gradients, optimizer states, and the units of sharding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.config_types import type_name
from mmitpn.engine.fsdp import is_unit
from mmitpn.testing.demo_inputs import quiet_logger


@dataclass(frozen=True)
class ModelStates:
    """Memory of a model and its optimizer, in bytes.

    Attributes:
        trainable: Trainable parameters.
        frozen: Frozen parameters.
        buffers: Buffers, such as the statistics of BatchNorm.
        averaged: An averaged copy of the model (mmengine's ``EMAHook``), 0 without one.
        gradients: Parameter name -> size of its gradient.
        states: Optimizer states.
        step_foreach: Temporaries of the optimizer's step on a GPU, where it updates a group of parameters at once.
        step_loop: Temporaries of its step on a CPU, where it updates one parameter after the other.
        largest_unit: Parameters of the largest unit of sharding, see :func:`shard_units`.
        root: Parameters outside of all units.
        keeps_gradients: Whether gradients are kept for the next forward pass (``accumulative_counts``).
        bucket_view: Whether gradients are views of the buckets that processes reduce (``gradient_as_bucket_view``).
        optimizer: Class of the optimizer.
        count: Number of parameters.
    """

    trainable: int
    frozen: int
    buffers: int
    averaged: int
    gradients: Mapping[str, int]
    states: int
    step_foreach: int
    step_loop: int
    largest_unit: int
    root: int
    keeps_gradients: bool
    bucket_view: bool
    optimizer: str
    count: int


def nbytes(tensors: Iterator[Tensor]) -> int:
    """Sum of the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shard_units(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose parameters are gathered and freed together where parameters are sharded.

    Returns:
        Outermost blocks of the backbone and the pyramid, and layers of encoders and decoders (:func:`is_unit`), by
        name. Parameters in none of them are gathered for the whole step.
    """
    units: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_unit(module) and not any(name.startswith(f'{unit}.') for unit in units):
            units[name] = module
    return units


def model_states(model: nn.Module, cfg: Any) -> ModelStates:
    """Count the memory of a model and the optimizer of its config.

    The optimizer is built as for training and runs one step on the meta device, which has sizes but no memory: its
    states are its own, whatever it is.

    Args:
        model: The model; it is moved to the meta device and cannot be used after that.
        cfg: The whole config, with ``optim_wrapper``.

    Raises:
        ValueError: If the config has no ``optim_wrapper``, or its optimizer does not run on the meta device.
        TypeError: If the optim_wrapper has several optimizers.
    """
    from mmengine.optim import build_optim_wrapper

    if not cfg.get('optim_wrapper'):
        raise ValueError('the config has no `optim_wrapper`, so it is not for training; add one')
    model = model.to('meta')
    with quiet_logger():
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer = getattr(wrapper, 'optimizer', None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f'optim_wrapper is a {type(wrapper).__name__}; allowed: one with a single optimizer')
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    for param in trainable.values():
        param.grad = torch.zeros_like(param)
    foreach, loop = _step_bytes(optimizer)
    for group in optimizer.param_groups:  # fused kernels need a real device; the states are the same
        group.update({key: False for key in ('fused', 'foreach') if key in group})
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f'{type(optimizer).__name__} cannot be counted: {str(error).splitlines()[0]}') from error
    states = nbytes(
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    units = shard_units(model)
    in_units = {id(param) for unit in units.values() for param in unit.parameters()}
    trainable_bytes, frozen_bytes = (
        nbytes(iter(trainable.values())),
        nbytes(p for p in model.parameters() if not p.requires_grad),
    )
    averages = any('EMAHook' in type_name(hook) for hook in cfg.get('custom_hooks') or ())
    return ModelStates(
        trainable=trainable_bytes,
        frozen=frozen_bytes,
        buffers=nbytes(model.buffers()),
        averaged=(trainable_bytes + frozen_bytes) if averages else 0,
        gradients={name: nbytes(iter([param])) for name, param in trainable.items()},
        states=states,
        step_foreach=foreach,
        step_loop=loop,
        largest_unit=max((nbytes(unit.parameters()) for unit in units.values()), default=0),
        root=nbytes(param for param in model.parameters() if id(param) not in in_units),
        keeps_gradients=cfg.optim_wrapper.get('accumulative_counts', 1) > 1,
        bucket_view=bool((cfg.get('model_wrapper_cfg') or {}).get('gradient_as_bucket_view')),
        optimizer=type(optimizer).__name__,
        count=sum(param.numel() for param in model.parameters()),
    )


def _step_bytes(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Temporaries of a step: with torch's grouped kernels, and with its loop over parameters.

    Grouped kernels make one copy of a group (Adam: the roots of the squares; SGD: gradients with weight decay), the
    loop two copies of a parameter, fused kernels none.
    """
    groups = [[param for param in group['params'] if param.grad is not None] for group in optimizer.param_groups]
    loop = 2 * max((nbytes(iter([param])) for group in groups for param in group), default=0)
    if all(group.get('fused') for group in optimizer.param_groups):
        return 0, 0
    return max((nbytes(iter(group)) for group in groups), default=0), loop
