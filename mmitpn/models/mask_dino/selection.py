"""Two-stage query selection: the most promising places of the encoder's maps become queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Width and height of a proposal on the first level of the decoder's order, in fractions of the picture; each next
# level has twice as much. Proposals nearer to a border than the margin are invalid.
_SIZE, _MARGIN = 0.05, 0.01


class Selection(NamedTuple):
    """What was chosen.

    Attributes:
        content: Memory of the chosen places, ``(B, Q, C)``.
        boxes: Their boxes' logits, ``(B, Q, 4)``.
        places: Their positions among all, ``(B, Q)``, the best first.
        scores: The best class logit of every position, ``(B, N)``.
    """

    content: Tensor
    boxes: Tensor
    places: Tensor
    scores: Tensor


def proposals(shapes: Sequence[tuple[int, int]], padding: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """A box at every place of the levels.

    Args:
        shapes: Heights and widths of the levels, in the decoder's order.
        padding: ``(B, N)``, True on padding, or None.
        like: Any tensor of the device.

    Returns:
        Box logits ``(B or 1, N, 4)``, ``inf`` where invalid, and what is valid, ``(B or 1, N, 1)``.
    """
    boxes = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
        size = torch.full((height, width), _SIZE * 2**level, device=like.device)
        middles = [x.expand(height, width), y[:, None].expand(height, width)]
        boxes.append(torch.stack([*middles, size, size], -1).flatten(0, 1))
    found = torch.cat(boxes)[None]
    valid = ((found > _MARGIN) & (found < 1 - _MARGIN)).all(-1, keepdim=True)
    if padding is not None:
        valid = valid & ~padding.unsqueeze(-1)
    logits = torch.log(found / (1 - found)).masked_fill(~valid, float('inf'))
    return logits, valid


def select_queries(
    memory: Tensor,
    shapes: Sequence[tuple[int, int]],
    padding: Tensor | None,
    *,
    number: int,
    transform: Callable[[Tensor], Tensor],
    classify: Callable[[Tensor], Tensor],
    refine: Callable[[Tensor], Tensor],
) -> Selection:
    """Choose queries.

    Args:
        memory: The encoder's levels in the decoder's order, flattened, ``(B, N, C)``.
        shapes: Heights and widths of the levels.
        padding: ``(B, N)``, True on padding, or None.
        number: How many are chosen.
        transform: Projection and norm of the memory.
        classify: Class logits of transformed memory.
        refine: Change of the box logits of transformed memory.

    Returns:
        The ``number`` places with the highest class logits.

    Raises:
        ValueError: If there are fewer places than ``number``.
    """
    if memory.shape[1] < number:
        raise ValueError(
            f'num_queries is {number}, but the levels {[tuple(shape) for shape in shapes]} have only {memory.shape[1]}'
            f' places to choose from: use larger pictures, or num_queries of at most {memory.shape[1]}'
        )
    boxes, valid = proposals(shapes, padding, memory)
    memory = transform(memory.masked_fill(~valid, 0.0))
    scores = classify(memory).amax(-1)
    places = scores.topk(number, dim=1).indices
    content = memory.gather(1, places.unsqueeze(-1).expand(-1, -1, memory.shape[-1]))
    chosen = boxes.expand(len(memory), -1, -1).gather(1, places.unsqueeze(-1).expand(-1, -1, 4))
    return Selection(content, chosen + refine(content), places, scores)
