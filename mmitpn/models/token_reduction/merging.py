"""Token merging with unmerging, to compare migration with."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .migration import TokenReducer, best_match
from .windows import TokenSet, take


class TokenMerging(TokenReducer):
    """ToMe (arXiv 2210.09461), also the pooling half of PPT (arXiv 2310.01812), with the tokens unmerged at the end.

    Every other token may merge into the one of the others whose key is most like its own; the most similar do. A merged
    token is the mean of what it stands for and counts as often in the softmax. For the pyramid each position gets the
    token that stands for it, as in ToMe for Stable Diffusion (arXiv 2303.17604). Merging within windows is ours.

    Args:
        depth: Blocks of the main stage.
        **ratios: See :class:`TokenReducer`.
    """

    def reduce(self, tokens: TokenSet, block: nn.Module, keep: int) -> TokenSet:
        """Merge until ``keep`` tokens a window are left: at most half of them at a time."""
        while (count := tokens.x.shape[2]) > keep:
            tokens = _merge(tokens, _keys(tokens.x, block), min(count - keep, count // 2))
        return tokens


@torch.no_grad()
def _keys(x: Tensor, block: nn.Module) -> Tensor:
    """Keys of the block that follows, averaged over its heads, of length 1: ``(B, windows, m, d)``."""
    dim = x.shape[-1]
    weight = block.attn.qkv.weight[dim : 2 * dim].view(block.attn.num_heads, -1, dim).mean(0)
    return F.normalize(F.linear(block.norm1(x), weight).float(), dim=-1)


def _merge(tokens: TokenSet, keys: Tensor, number: int) -> TokenSet:
    """Merge ``number`` tokens of every window into others."""
    weights = tokens.weights()
    count = int(tokens.x.shape[2])
    first, second = torch.arange(0, count, 2, device=keys.device), torch.arange(1, count, 2, device=keys.device)
    similar, partner = best_match(keys[:, :, first], keys[:, :, second])
    similar = similar.masked_fill(weights[:, :, first] == 0, float('inf'))  # padding goes first
    order = similar.topk(int(similar.shape[-1])).indices
    merged, alone = order[..., :number], order[..., number:].sort(-1).values
    partner = partner.gather(-1, merged)
    # The new tokens: those of the first half that stay alone, then the second half.
    x, size = tokens.x * weights.unsqueeze(-1), weights
    x_second, size_second = x[:, :, second], size[:, :, second]
    merged_places = merged * 2
    spread = partner.unsqueeze(-1).expand(*partner.shape, x.shape[-1])
    x_second = x_second.scatter_add(2, spread, take(x, merged_places))
    size_second = size_second.scatter_add(2, partner, size.gather(2, merged_places))
    x_second = x_second / size_second.clamp(min=1).unsqueeze(-1)
    places = tokens.places()
    to = torch.empty_like(places)
    to.scatter_(2, alone * 2, torch.arange(alone.shape[-1], device=to.device).expand_as(alone))
    to.scatter_(2, merged_places, partner + alone.shape[-1])
    to[:, :, second] = torch.arange(alone.shape[-1], alone.shape[-1] + len(second), device=to.device)
    return replace(
        tokens,
        x=torch.cat((take(tokens.x, alone * 2), x_second), 2),
        weight=torch.cat((size.gather(2, alone * 2), size_second), 2),
        place=torch.cat((places.gather(2, alone * 2), places[:, :, second]), 2),
        undo=(*tokens.undo, lambda x: take(x, to)),
    )
