"""How redundant a token is. Each score is a small strategy in the registry: features and places in, one number out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import WindowGrid

# features (B, W, m, C) of length 1, places (B, W, m), windows -> redundancy (B, W, m), the higher the more redundant,
# in a range of at most 4
Score = Callable[[Tensor, Tensor, WindowGrid], Tensor]

SCORES: dict[str, Score] = {}
# Bytes of similarities that are held at once.
_BUDGET = 8 * 2**20


def register_score(name: str) -> Callable[[Score], Score]:
    """Make a score available as ``token_migration=dict(score=name)``.

    Args:
        name: What configs call it. Scores differ by at most 4, as cosines do.

    Raises:
        ValueError: If the name is taken.
    """

    def add(score: Score) -> Score:
        if name in SCORES:
            raise ValueError(f'a score named {name!r} is registered already; choose another name')
        SCORES[name] = score
        return score

    return add


@register_score('neighborhood')
def neighborhood_similarity(features: Tensor, places: Tensor, grid: WindowGrid) -> Tensor:
    """Mean cosine similarity to the tokens around it (3x3, inside the window, those that are still there)."""
    batch, windows, _, dim = features.shape
    canvas = features.new_zeros(batch, windows, grid.slots, dim + 1)
    counted = F.pad(features, (0, 1), value=1.0)  # the last channel counts the tokens that are there
    canvas = canvas.scatter_(2, places.unsqueeze(-1).expand_as(counted), counted)
    canvas = canvas.view(batch, windows, grid.tall, grid.wide, dim + 1)
    around = F.pad(canvas, (0, 0, 1, 1, 1, 1))
    around = around[:, :, :-2] + around[:, :, 1:-1] + around[:, :, 2:]
    around = around[..., :-2, :] + around[..., 1:-1, :] + around[..., 2:, :]
    around = around.view(batch, windows, grid.slots, dim + 1)
    around = around.gather(2, places.unsqueeze(-1).expand_as(counted))
    similar = (around[..., :dim] * features).sum(-1) - features.square().sum(-1)
    return similar / (around[..., dim] - 1).clamp(min=1)


@register_score('bipartite')
def bipartite_similarity(features: Tensor, places: Tensor, grid: WindowGrid) -> Tensor:
    """Cosine similarity to the nearest token of the other half, as ToMe matches (arXiv 2210.09461).

    The halves are a checkerboard: not every other place, which would be stripes in a window of even width.
    """
    white = (places // grid.wide + places % grid.wide) % 2 == 0
    # The halves are not equally large: one more channel keeps each from matching its own (+1 and -1, scaled).
    side = torch.where(white, 2.0, -2.0).unsqueeze(-1)
    best, _ = best_match(torch.cat((features, side), -1), torch.cat((features, -side), -1))
    return best - 4.0


def best_match(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product of each query with a key, and which key it is.

    Args:
        queries: ``(B, W, q, C)``.
        keys: ``(B, W, k, C)``.

    Returns:
        Products and positions of the keys, both ``(B, W, q)``. Only a part of all products is held at once.
    """
    batch, windows, count, _ = map(int, keys.shape)
    rows = min(max(1, _BUDGET // (4 * max(1, batch * windows * count))), int(queries.shape[2]))
    found = [(part @ keys.transpose(-1, -2)).max(-1) for part in queries.split(rows, 2)]
    return torch.cat([one.values for one in found], 2), torch.cat([one.indices for one in found], 2)
