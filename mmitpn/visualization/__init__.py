"""Figures of a training: its curve, and its predictions next to the ground truth."""

from .curves import History, draw_curve, find_scalars, read_history
from .panoptic_sheet import draw_segments
from .semantic_sheet import draw_label_maps
from .sheet import draw_predictions

__all__ = [
    'History',
    'draw_curve',
    'draw_label_maps',
    'draw_predictions',
    'draw_segments',
    'find_scalars',
    'read_history',
]
