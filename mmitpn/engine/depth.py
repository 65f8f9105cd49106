"""How deep a parameter lies in its backbone, by the backbone's own account (mmpretrain's ``get_layer_depth``)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

# What torch.compile, activation checkpointing and FSDP put into parameter names.
WRAPPED = re.compile(r'(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.')


def find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """Find the backbones, by name: the model's own, or those of the models it holds (semi-supervised, distillation).

    Args:
        model: Detector, segmentor or classifier, unwrapped.

    Returns:
        Modules called ``backbone`` that have ``get_layer_depth``, by their full name.

    Raises:
        ValueError: If there is none, or one that trains lacks ``get_layer_depth``.
    """
    found: dict[str, nn.Module] = {}
    without: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if name.rpartition('.')[2] == 'backbone' and not any(name.startswith(f'{outer}.') for outer in found):
            if callable(getattr(module, 'get_layer_depth', None)):
                found[WRAPPED.sub('', name)] = module
            elif any(param.requires_grad for param in module.parameters()):
                without.append((name, type(module).__name__))
    # A backbone may wrap another one that answers for its own parameters.
    without = [f'{name} ({kind})' for name, kind in without if not any(inner.startswith(f'{name}.') for inner in found)]
    if without:
        raise ValueError(
            f'layer decay asks the backbone how deep its parameters lie, but {", ".join(without)} has no'
            " get_layer_depth; use a backbone that has it (mmitpn's, or mmpretrain's transformers), or mmengine's"
            ' default constructor'
        )
    if not found:
        children = ', '.join(name for name, _ in model.named_children()) or 'nothing'
        raise ValueError(
            f"layer decay found no part called 'backbone' in {type(model).__name__} (it has {children});"
            ' use it on a detector, segmentor or classifier, or remove constructor from optim_wrapper'
        )
    return found


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield the name, owner and parameter of all, a shared one under each of its names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, param in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            yield WRAPPED.sub('', leaf), module, param


def layer_depth(backbone: nn.Module, name: str) -> tuple[int, int]:
    """Ask a backbone for the layer of a parameter, and check what it says.

    Args:
        backbone: Module with ``get_layer_depth``.
        name: Name of the parameter within the backbone.

    Returns:
        Layer of the parameter, 0 being the stem, and the number of layers.

    Raises:
        ValueError: If the layer lies outside the number of layers.
    """
    layer_id, num_layers = backbone.get_layer_depth(name)
    if not 0 <= layer_id < num_layers:
        raise ValueError(
            f'{type(backbone).__name__}.get_layer_depth({name!r}) returned layer {layer_id} of {num_layers},'
            f' so the parameter is in no group; allowed: 0 to {num_layers - 1}'
        )
    return layer_id, num_layers


def check_depths(backbone: nn.Module, name: str, seen: set[int]) -> None:
    """Refuse a ``get_layer_depth`` that does not know the names of its own blocks (mmpretrain's HiViT).

    Args:
        backbone: Module with ``get_layer_depth``.
        name: Name of the backbone, for the message.
        seen: Layers of its trainable parameters; an entirely frozen backbone is not looked at.

    Raises:
        ValueError: If no parameter lies between the first and the last layer although there are more than two.
    """
    probe = {layer_depth(backbone, WRAPPED.sub('', key)) for key, _ in backbone.named_parameters()}
    inner = {layer for layer, num_layers in probe if 0 < layer < num_layers - 1}
    if seen and not inner and any(num_layers > 2 for _, num_layers in probe):
        raise ValueError(
            f'{type(backbone).__name__}.get_layer_depth puts no parameter of {name} between the first and last'
            ' layer: it does not know the names of its blocks, and layer decay would do nothing; correct it or use'
            ' another backbone'
        )
