"""What token migration and token gathering do to a picture, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmitpn.models.token_reduction import GatheringAttend, GlobalAttend, TokenSet, WindowGrid


@dataclass
class TokenTrace:
    """One picture's way through a main stage.

    Attributes:
        grid: The windows.
        kept: Block from which on fewer tokens are worked on -> those left, ``(height, width)`` of bool.
        received: Windowed block -> attention that the cells of each window get from all other windows' tokens, by
            gathering tokens: ``(height, width)``, in units of what one token has to give; summed over the cell, spread
            evenly.
        leaving: Windowed block -> share of each window's attention that leaves it, ``(rows, columns)``.
    """

    grid: WindowGrid
    kept: dict[int, Tensor] = field(default_factory=dict)
    received: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def trace_tokens(backbone: nn.Module, image: Tensor) -> TokenTrace:
    """Run a backbone on a picture and look.

    Args:
        backbone: A FastITPN with token migration, token gathering or both, in the mode it shall be looked at in.
        image: Normalised, ``(1, 3, H, W)``.

    Returns:
        What was seen.

    Raises:
        ValueError: If the backbone has neither, or there is more than one picture.
    """
    reduction = getattr(backbone, 'token_reduction', None)
    if reduction is None:
        raise ValueError(
            f'{type(backbone).__name__} has no token_migration and no token_gathering here: nothing is dropped or '
            'gathered; set them, for example --cfg-options model.backbone.token_migration.keep_ratio=0.5 '
            'model.backbone.token_gathering.window_size=16'
        )
    if image.shape[0] != 1:
        raise ValueError(f'{image.shape[0]} pictures were given; a trace is of one')
    traces: list[TokenTrace] = []
    counts = [0]

    def observe(block: int, tokens: TokenSet, attend: GatheringAttend | GlobalAttend) -> None:
        if not traces:
            traces.append(TokenTrace(tokens.grid))
        if tokens.place is not None and tokens.x.shape[2] != counts[-1]:
            traces[0].kept[block] = _where(tokens)
        counts.append(tokens.x.shape[2])
        if isinstance(attend, GatheringAttend) and attend.number:
            _look(traces[0], block, tokens, attend, backbone.blocks[block].norm1, backbone.blocks[block].attn)

    reduction.observer = observe
    try:
        backbone(image)
    finally:
        reduction.observer = None
    return traces[0]


def _where(tokens: TokenSet) -> Tensor:
    there = torch.zeros(1, tokens.grid.number, tokens.grid.slots).scatter(2, tokens.place, 1.0)
    return tokens.grid.merge(there.unsqueeze(-1))[0, :, :, 0] > 0


def _look(
    trace: TokenTrace, block: int, tokens: TokenSet, attend: GatheringAttend, norm: nn.Module, attention: nn.Module
) -> None:
    grid, count = tokens.grid, tokens.x.shape[2]
    query, key, _ = attention.project(norm(tokens.x).flatten(1, 2))
    real = tokens.weights()[0] > 0  # W, m
    cut = grid.cut(attend.number)
    received = torch.zeros(grid.number * attend.number)
    leaving = torch.zeros(grid.number)
    for head in range(attention.num_heads):
        offset = None if attention.gathering_offset is None else attention.gathering_offset[0, head : head + 1]
        shares = attend.shares(query[:, head : head + 1], key[:, head : head + 1], offset)[0]
        far = shares[..., count:] * real.unsqueeze(-1)  # padding does not count
        received.index_add_(0, attend.others, far.sum(1).flatten().float())
        leaving += far.sum((1, 2)) / real.sum(1)
    cell = grid.cells(cut, torch.device('cpu'))
    weight = grid.weight(torch.device('cpu'))
    there = torch.ones(grid.number, grid.slots) if weight is None else weight[0]
    size = torch.zeros(grid.number, attend.number).index_add(1, cell, there)  # of each cell, without padding
    spread = (received.view(grid.number, attend.number) / size.clamp(min=1))[:, cell] / attention.num_heads
    trace.received[block] = grid.merge(spread.view(1, grid.number, grid.slots, 1))[0, :, :, 0]
    trace.leaving[block] = (leaving / attention.num_heads).view(grid.rows, grid.columns)
