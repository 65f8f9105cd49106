"""Two-stage query selection: the most promising places of the encoder's maps become queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Width and height of a proposal on the first level of the decoder's order, in fractions of the picture; each next
# level has twice as much. Proposals nearer to a border than the margin are invalid.
_SIZE, _MARGIN = 0.05, 0.01


class Selection(NamedTuple):
    """What was chosen.

    Attributes:
        content: Memory of the chosen positions, ``(B, Q, C)``.
        boxes: Their boxes' logits, ``(B, Q, 4)``.
        places: Their indices among all positions, ``(B, Q)``, the best first.
        scores: The best class logit of every position, ``(B, N)``.
    """

    content: Tensor
    boxes: Tensor
    places: Tensor
    scores: Tensor

    def part(self, last: int) -> Selection:
        """The best ``last`` positions."""
        return Selection(self.content[:, :last], self.boxes[:, :last], self.places[:, :last], self.scores)


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

    Positions are padded to ``number`` with scores of minus infinity: the padded ones are the last of the chosen. Their
    content is 0, their box logits are infinite.

    Args:
        memory: The encoder's levels in the decoder's order, flattened, ``(B, N, C)``.
        shapes: Heights and widths of the levels.
        padding: ``(B, N)``, True on padding, or None.
        number: How many are chosen.
        transform: Projection and norm of the memory.
        classify: Class logits of transformed memory.
        refine: Change of the box logits of transformed memory.

    Returns:
        The ``number`` positions with the highest class logits.
    """
    missing = max(number - memory.shape[1], 0)
    boxes, valid = proposals(shapes, padding, memory)
    memory = transform(memory.masked_fill(~valid, 0.0))
    scores = classify(memory).amax(-1)
    places = F.pad(scores, (0, missing), value=float('-inf')).topk(number, dim=1).indices
    memory = F.pad(memory, (0, 0, 0, missing))
    content = memory.gather(1, places.unsqueeze(-1).expand(-1, -1, memory.shape[-1]))
    boxes = F.pad(boxes, (0, 0, 0, missing), value=float('inf')).expand(len(memory), -1, -1)
    chosen = boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4))
    return Selection(content, chosen + refine(content), places, scores)
