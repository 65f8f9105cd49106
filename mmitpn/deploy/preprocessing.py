"""From an image to the inputs of an exported network: the size rule of its test pipeline, normalization and padding.

The steps are those of mmcv, mmdet, mmseg and mmpretrain, whose results they equal; here they need OpenCV and Pillow
alone. An image is BGR, uint8 ``(H, W, 3)``, as the frameworks read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mmitpn.deploy.metadata import ExportInfo

_OPENCV = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}
_PILLOW = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'box': Image.Resampling.BOX,
    'lanczos': Image.Resampling.LANCZOS,
    'hamming': Image.Resampling.HAMMING,
}
BACKENDS = {'cv2': _OPENCV, 'pillow': _PILLOW}


def read_image(path: str) -> np.ndarray:
    """Read an image file as the frameworks do: BGR, uint8 ``(H, W, 3)``, turned as its EXIF tag says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If OpenCV cannot decode it.
    """
    content = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise ValueError('OpenCV cannot decode it')
    return image


@dataclass(frozen=True)
class PreparedImage:
    """An image of the network's size, not yet padded.

    Attributes:
        pixels: Normalized, float32 ``(3, h, w)``.
        original: Height and width of the image before.
    """

    pixels: np.ndarray
    original: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def scale(self) -> tuple[float, float]:
        """Width and height by which the image was enlarged, as mm's ``scale_factor``."""
        return self.size[1] / self.original[1], self.size[0] / self.original[0]


def prepare_image(image: np.ndarray, info: ExportInfo) -> PreparedImage:
    """Resize and normalize an image as the metadata of a file say.

    Args:
        image: BGR, uint8 ``(H, W, 3)``.
        info: The metadata.
    """
    original = image.shape[:2]
    for step in info.steps:
        image = _STEPS[step['type']](image, step)
    pixels = image[..., ::-1] if info.to_rgb else image
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    pixels -= np.asarray(info.mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(info.std, dtype=np.float32)[:, None, None]
    return PreparedImage(pixels, original)


def pad_images(images: Sequence[np.ndarray], info: ExportInfo, *, multiple: int = 1) -> dict[str, np.ndarray]:
    """Inputs of the network: images of one batch, padded with zeros at the right and bottom.

    Args:
        images: Normalized images ``(3, h, w)``, of any sizes.
        info: The metadata of the file.
        multiple: The sides of the batch are multiples of it, and of ``info.divisor``, if the file takes any size.

    Returns:
        ``images`` ``(B, 3, H, W)`` and ``padding_mask`` ``(B, H, W)``, True on padding.

    Raises:
        ValueError: If an image is larger than a file of one size takes.
    """
    height, width = (max(one.shape[side] for one in images) for side in (1, 2))
    if info.size is None:
        step = int(np.lcm(multiple, info.divisor))
        height, width = (-(-max(side, info.least) // step) * step for side in (height, width))
    elif height > info.size[0] or width > info.size[1]:
        raise ValueError(
            f'an image is {height}x{width} after resizing, but the file takes {info.size[0]}x{info.size[1]} (height x'
            ' width): export it for a larger size or --size dynamic'
        )
    else:
        height, width = info.size
    number = len(images) if info.batch is None else max(info.batch, len(images))
    batch = np.zeros((number, images[0].shape[0], height, width), dtype=np.float32)
    mask = np.ones((number, height, width), dtype=bool)
    mask[len(images) :] = False
    for index, one in enumerate(images):
        batch[index, :, : one.shape[1], : one.shape[2]] = one
        mask[index, : one.shape[1], : one.shape[2]] = False
    return {'images': batch, 'padding_mask': mask}


# --- steps ------------------------------------------------------------------------------------------------------------


def _resize(image: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """``scale`` (width, height); with ``keep_ratio`` the larger number bounds the longer side, as in mmcv.

    ``within`` (height, width) is the size of the file, which bounds the result too.
    """
    height, width = image.shape[:2]
    size = tuple(step['scale'])
    if step['keep_ratio']:
        factor = min(max(size) / max(height, width), min(size) / min(height, width))
        if step.get('within') is not None:
            factor = min(factor, step['within'][0] / height, step['within'][1] / width)
        size = int(width * float(factor) + 0.5), int(height * float(factor) + 0.5)
    return _resample(image, (max(size[0], 1), max(size[1], 1)), step)


def _resize_edge(image: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """One edge (short, long, width, height) gets ``scale`` pixels, as mmpretrain's ResizeEdge."""
    height, width = image.shape[:2]
    edge = step['edge']
    by_width = edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height)
    scale = step['scale']
    size = (scale, int(scale * height / width)) if by_width else (int(scale * width / height), scale)
    return _resample(image, size, step)


def _center_crop(image: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """The middle of ``crop_size`` (width, height), or what there is of it."""
    height, width = image.shape[:2]
    columns, rows = (min(want, have) for want, have in zip(step['crop_size'], (width, height), strict=True))
    top, left = (round((have - want) / 2.0) for have, want in ((height, rows), (width, columns)))
    return image[top : top + rows, left : left + columns]


def _resample(image: np.ndarray, size: tuple[int, int], step: Mapping[str, Any]) -> np.ndarray:
    """Resize to ``size`` (width, height)."""
    how = step['interpolation']
    if step['backend'] == 'pillow':
        return np.array(Image.fromarray(image).resize(size, _PILLOW[how]))
    return cv2.resize(image, size, interpolation=_OPENCV[how])


_STEPS = {'Resize': _resize, 'ResizeEdge': _resize_edge, 'CenterCrop': _center_crop}
STEPS = tuple(_STEPS)
