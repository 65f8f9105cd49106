"""Weights from the authors' layouts into ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmitpn.checkpoint.layouts import AUTHORS, OURS, FileInfo, identify, part_of
from mmitpn.checkpoint.names import ITPN, is_ignored, name_pairs
from mmitpn.checkpoint.sizes import arch_of, pyramid_of


@dataclass
class Weights:
    """Weights of backbone and pyramid in our layout.

    Attributes:
        state: Our name -> tensor, in the file's own type.
        ignored: Names in the file that are left out by rule.
        unexpected: Names in the file that no rule knows.
        notes: What was done beyond renaming, one sentence each.
    """

    state: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def to_ours(info: FileInfo) -> Weights:
    """Backbone and pyramid of a file of the family in our layout, types and values unchanged.

    Args:
        info: A file in our layout or in one of the authors' layouts.

    Raises:
        ValueError: If it is in another layout, or so incomplete that its blocks cannot be told apart.
    """
    if info.layout not in (OURS, *AUTHORS):
        raise ValueError(f'this is not a file of the iTPN family: {info.title} ({info.examples()})')
    weights = Weights({})
    left = dict(info.body)
    if info.layout == OURS:
        known = {name for name in left if part_of(name) != 'other'}
        weights.state = {name: left.pop(name) for name in list(left) if name in known}
    else:
        if info.arch is None:
            raise ValueError(
                f'the two merges (blocks.N.reduction.weight) are not both in it: it is cut off ({info.examples()})'
            )
        if info.family != ITPN and 'norm.weight' not in left and 'fc_norm.weight' in left:
            for kind in ('weight', 'bias'):
                left[f'norm.{kind}'] = left.pop(f'fc_norm.{kind}')
            weights.notes.append(
                'fc_norm (norm after mean pooling) was loaded into norm: the file has no norm of its own'
            )
        depth = info.pyramid.depth if info.pyramid else 1
        for pair in name_pairs(info.family, info.arch.depths, pyramid_depth=depth):
            if all(name in left for name in pair.authors):
                tensors = [left.pop(name) for name in pair.authors]
                weights.state[pair.ours] = pair.to_ours(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
    for name in left:
        (weights.ignored if is_ignored(info.family, name) else weights.unexpected).append(name)
    return weights


def to_authors(state: Mapping[str, Tensor], depths: tuple[int, int, int] | None = None) -> dict[str, Tensor]:
    """Weights named as the authors name them, bit-equal: the inverse of the conversion that loading does.

    Args:
        state: State dict of a FastITPN, an ITPN, an ITPNPyramid, or a model with them as ``backbone`` and ``neck``.
        depths: Blocks of the three stages; None reads them off the weights. A pyramid alone needs none.

    Returns:
        Backbone and pyramid weights; those of heads are left out.

    Raises:
        ValueError: If the weights are in another layout, or some of a layer's are missing.
    """
    info = identify(state)
    if info.layout != OURS:
        raise ValueError(f"only mmitpn's own weights are converted to the authors' layout, but this is {info.title}")
    arch, pyramid = arch_of(info.body), pyramid_of(info.body)
    if depths is None:
        depths = arch.depths if arch else (0, 0, 0)
    result: dict[str, Tensor] = {}
    left = dict(info.body)
    for pair in name_pairs(info.family, depths, pyramid_depth=pyramid.depth if pyramid else 1):
        if pair.ours not in left:
            continue
        value = pair.to_authors(left.pop(pair.ours))
        # Cloned: safetensors refuses tensors that share memory.
        parts = [part.clone() for part in value.chunk(3)] if len(pair.authors) == 3 else [value]
        result.update(zip(pair.authors, parts, strict=True))
    lost = [name for name in left if part_of(name) != 'other']
    if lost:
        raise ValueError(f'{len(lost)} weights have no place in a network of depths {depths}: {", ".join(lost[:3])}')
    return result
