"""Small helpers that several packages share: integers, even samples, seeds, masks and segment ids as arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache, wraps
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from warnings import catch_warnings, simplefilter

import numpy as np

if TYPE_CHECKING:  # what only reads settings and masks starts without torch
    import torch
    from torch import Tensor

Item = TypeVar('Item')
P = ParamSpec('P')
R = TypeVar('R')

# Mean and standard deviation of ImageNet's RGB values, 0 to 255. Configs repeat them, since a config stands alone.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')  # endings of image files


def is_int(value: Any) -> bool:
    """Whether a value is an integer; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_int(name: str, value: Any, *, least: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``least``; a bool is not an integer.

    Args:
        name: Name of the setting, as the user writes it.
        value: The value of the setting.
        least: Smallest allowed value.

    Raises:
        ValueError: If it is not.
    """
    if not is_int(value) or value < least:
        raise ValueError(f'{name} is {value!r}; give an integer of at least {least}')


def evenly_spaced(items: Sequence[Item], number: int | None) -> list[Item]:
    """Choose at most ``number`` items, evenly spaced over the sequence.

    Args:
        items: The items.
        number: How many at most; None takes all.

    Returns:
        The chosen items in their order.
    """
    number = len(items) if number is None else min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


def config_folder() -> Path:
    """The folder of this project's configs: that of the checkout, or the copy in an installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return (checkout if (checkout / 'setup.py').is_file() else package / '.mim') / 'configs'


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import frameworks without what they print and warn of packages that could be installed too."""
    with redirect_stdout(StringIO()), catch_warnings():
        simplefilter('ignore')
        yield


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of Python, numpy and torch from non-negative integers."""
    import torch

    state = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 - the frameworks' transforms draw from the global state
    torch.manual_seed(int(state[1]))


def rgb2id(pixels: np.ndarray) -> np.ndarray:
    """Read the segment ids of a COCO panoptic PNG.

    Args:
        pixels: RGB, uint8 ``(H, W, 3)``.

    Returns:
        int32 ``(H, W)``: R + 256 G + 65536 B.
    """
    red, green, blue = np.moveaxis(np.asarray(pixels).astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Write segment ids as the pixels of a COCO panoptic PNG, the inverse of :func:`rgb2id`.

    Args:
        ids: Integers from 0 to 16777215, ``(H, W)``.

    Returns:
        RGB, uint8 ``(H, W, 3)``.
    """
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def mask_to_box(mask: np.ndarray) -> list[int]:
    """Compute the smallest box around the pixels of a mask.

    Args:
        mask: bool ``(H, W)`` with at least one pixel.

    Returns:
        x, y, width, height in pixels, as COCO writes a box.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def copy_to_device(values: Any, device: torch.device) -> Tensor:
    """Copy numbers of the host to a device, in one copy for which the host does not wait on a GPU.

    Args:
        values: What ``torch.as_tensor`` takes, on the host.
        device: Where to.
    """
    import torch

    host = torch.as_tensor(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else host.to(device)


def constant_per_size(function: Callable[P, R]) -> Callable[P, R]:
    """Keep the last results of a function of sizes and a device that makes constant tensors.

    They must not be changed. While a graph of the network is traced, they are made in the graph.
    """
    kept = lru_cache(maxsize=32)(function)

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> R:
        import torch

        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._guards.detect_fake_mode() is not None:
            return function(*args, **kwargs)
        with torch.inference_mode(mode=False), torch.no_grad():  # constants of a prediction serve a training step too
            return kept(*args, **kwargs)

    return make
