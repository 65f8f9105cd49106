"""Whether a checkpoint fits a model and its optimizer, weight by weight, and the message where it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from mmitpn.checkpoint.diagnostics import some
from mmitpn.engine.checkpoint_loader import load_from_hint

# States of torch's optimizers that have the shape of their weight; others may be smaller, such as Adafactor's.
FULL_STATES = frozenset(
    {
        *('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'exp_inf', 'momentum_buffer', 'square_avg', 'grad_avg'),
        *('acc_delta', 'sum', 'prev', 'step_size', 'ax'),
    }
)
# Settings of torch's optimizers that came with one release or another and change no state.
SWITCHES = frozenset({'foreach', 'fused', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'})


@dataclass(frozen=True)
class Misfit:
    """A weight, or a state of the optimizer, that does not fit.

    Attributes:
        name: Its name.
        stored: Its shape in the file; None where it is not there.
        own: Its shape in the model.
    """

    name: str
    stored: tuple[int, ...] | None
    own: tuple[int, ...]

    def __str__(self) -> str:
        """The name and both shapes."""
        there = 'not in the file' if self.stored is None else f'{self.stored} in the file'
        return f'{self.name} is {there} and {self.own} in the model'


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of distributed wrappers and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def compare_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], *, resizable: bool = False
) -> tuple[list[Misfit], int]:
    """Compare the parameters of a model with the weights of a checkpoint.

    Args:
        model: The model, with or without a wrapper.
        checkpoint: What the file holds: a dict with ``state_dict``, or the state dict itself.
        resizable: Accept positions of another grid, which their module resizes when they are loaded. The state of an
            optimizer is not resized.

    Returns:
        The parameters that are missing or have another shape, and how many parameters the model has.
    """
    state = checkpoint.get('state_dict', checkpoint)
    stored = {str(name).removeprefix('module.'): _shape(value) for name, value in state.items()}
    inner = unwrap(model)
    parameters = dict(inner.named_parameters())
    wrong = [
        Misfit(name, stored.get(name), tuple(parameter.shape))
        for name, parameter in parameters.items()
        if stored.get(name) != tuple(parameter.shape)
    ]
    if resizable:
        wrong = [misfit for misfit in wrong if not _is_resized(inner, misfit)]
    return wrong, len(parameters)


def _is_resized(model: nn.Module, misfit: Misfit) -> bool:
    """Whether a parameter is the positions of a module that fits those of a file to its grid."""
    path, _, name = misfit.name.rpartition('.')
    fit = getattr(model.get_submodule(path), 'fit_positions', None)
    return misfit.stored is not None and fit is not None and fit(name, torch.Size(misfit.stored)) is not None


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def compare_optimizer(model: nn.Module, wrapper: Any, stored: Mapping[str, Any]) -> list[str]:
    """Compare the state of an optimizer with what a checkpoint holds of it.

    Args:
        model: The model, with or without a wrapper.
        wrapper: mmengine's ``OptimWrapper``, or several in its ``OptimWrapperDict``.
        stored: The state dict of the wrapper in the checkpoint.

    Returns:
        What does not fit, in words.
    """
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    problems: list[str] = []
    for key, optimizer in _optimizers(wrapper):
        state = stored if key is None else stored.get(key)
        where = '' if key is None else f'{key}: '
        if not isinstance(state, Mapping) or 'param_groups' not in state:
            problems.append(f'{where}there is no state of this optimizer ({some(list(map(str, stored)))})')
        else:
            problems += [f'{where}{problem}' for problem in _compare_groups(optimizer, state, names)]
    return problems


def _optimizers(wrapper: Any) -> Iterator[tuple[str | None, torch.optim.Optimizer]]:
    several = getattr(wrapper, 'optim_wrappers', None)
    for key, one in several.items() if several is not None else [(None, wrapper)]:
        optimizer = getattr(one, 'optimizer', None)
        if isinstance(optimizer, torch.optim.Optimizer):
            yield key, optimizer


def _compare_groups(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Mapping[Tensor, str]
) -> Iterator[str]:
    """As torch pairs them: the weights of a group by their position in it."""
    theirs = [list(group['params']) for group in state['param_groups']]
    ours = [group['params'] for group in optimizer.param_groups]
    if len(theirs) != len(ours):
        yield f'{len(theirs)} parameter groups in the file, {len(ours)} in this run'
        return
    lacks = set(optimizer.defaults) - SWITCHES - set(state['param_groups'][0])
    if lacks:
        yield f'it is of another optimizer than {type(optimizer).__name__}, without its {", ".join(sorted(lacks))}'
        return
    for index, (group, own) in enumerate(zip(theirs, ours, strict=True)):
        if len(group) != len(own):
            yield f'group {index} has {len(group)} weights in the file, {len(own)} in this run'
            continue
        for key, parameter in zip(group, own, strict=True):
            name = names.get(parameter, f'weight {key}')
            if isinstance(key, str) and key != name:
                yield f'{name} has the state of {key}'
            for what, value in (state.get('state', {}).get(key) or {}).items():
                if isinstance(value, Tensor) and not _fits(what, value.shape, parameter.shape):
                    yield str(Misfit(f'{name}.{what}', tuple(value.shape), tuple(parameter.shape)))


def _fits(what: str, shape: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a state can be of a weight: it is a number, has its shape, or has some of its sides."""
    if what in FULL_STATES:
        return tuple(shape) == tuple(weight)
    sides = iter(weight)
    return all(side == 1 or side in sides for side in shape)


def refuse_to_resume(
    checkpoint: str | os.PathLike, problems: Sequence[Misfit | str], total: int, *, optimizer: bool = False
) -> None:
    """Raise where a checkpoint does not fit the run that is to be resumed from it.

    Args:
        checkpoint: The file.
        problems: What does not fit; nothing is raised where there is none.
        total: How many weights there are.
        optimizer: They are of the optimizer's state; the weights fit.

    Raises:
        ValueError: If something does not fit; names the first three, and how to start a new run from what does.
    """
    if not problems:
        return
    shown = some([str(problem) for problem in problems])
    if optimizer:
        raise ValueError(
            f'the optimizer state in {checkpoint} does not fit this run, its weights do ({shown}): resume with the'
            f' optim_wrapper and frozen_stages that it was saved with, or start a new run from its weights:'
            f' {load_from_hint(checkpoint)}'
        )
    raise ValueError(
        f'{checkpoint} is of another model: {len(problems)} of the {total} weights do not fit ({shown}): resume with'
        ' the config that it was saved with, or start a new run from the weights that fit:'
        f' {load_from_hint(checkpoint)}'
    )
