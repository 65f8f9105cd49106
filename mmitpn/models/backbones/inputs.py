"""What a backbone of the family accepts as images."""

from __future__ import annotations

from torch import Tensor


def check_images(x: Tensor) -> None:
    """Raise unless ``x`` is a batch of floating-point images. Values are not read, so a device is not waited for.

    Args:
        x: What was given to the backbone; ``(B, 3, H, W)`` is allowed, H and W at least 1.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is another.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f'the backbone was given a {type(x).__name__}; it takes a float tensor (B, 3, H, W)')
    if not x.is_floating_point():
        raise TypeError(
            f'the backbone was given {x.dtype} values; it takes normalized floats: let the data preprocessor'
            ' (mean, std) run first, or call .float()'
        )
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f'the backbone was given the shape {tuple(x.shape)}; it takes (B, 3, H, W), nothing empty')
