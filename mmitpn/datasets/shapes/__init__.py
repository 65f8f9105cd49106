"""The generated dataset of the quick start: shapes before textures, in COCO's and ADE20K's layout."""

from .drawing import SHAPES_CLASSES, SHAPES_PALETTE, SHAPES_STUFF, SHAPES_STUFF_PALETTE
from .generate import generate_images, generate_shapes

__all__ = [
    'SHAPES_CLASSES',
    'SHAPES_PALETTE',
    'SHAPES_STUFF',
    'SHAPES_STUFF_PALETTE',
    'generate_images',
    'generate_shapes',
]
