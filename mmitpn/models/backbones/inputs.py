"""What a backbone of the family accepts as pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(x: Tensor) -> None:
    """Raise unless ``x`` is a batch of finite floating-point pictures.

    Args:
        x: What was handed to the backbone; ``(B, 3, H, W)`` is allowed, H and W at least 1.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is another, or a value is NaN or infinite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f'the backbone was given a {type(x).__name__}; it takes a float tensor (B, 3, H, W)')
    if not x.is_floating_point():
        raise TypeError(
            f'the backbone was given {x.dtype} values; it takes normalised floats: let the data preprocessor'
            ' (mean, std) run first, or call .float()'
        )
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f'the backbone was given the shape {tuple(x.shape)}; it takes (B, 3, H, W), nothing empty')
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta:
        return
    # One pass, no mask in memory: a sum is finite only if every value is.
    if not torch.isfinite(x.detach().sum(dtype=torch.float32)):
        bad = (~torch.isfinite(x.detach())).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f'NaN or infinite values in picture(s) {bad} of the batch of {len(x)}: look at those files and at the'
                ' mean and std of the data preprocessor (a std of 0 gives this)'
            )
