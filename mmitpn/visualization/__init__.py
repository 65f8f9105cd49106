"""Images beside their predictions, drawn as one PNG, and the curves of a training run."""

from .curves import History, draw_curve, find_scalars, read_history
from .predictions import draw_label_maps, draw_predictions, draw_segments

__all__ = [
    'History',
    'draw_curve',
    'draw_label_maps',
    'draw_predictions',
    'draw_segments',
    'find_scalars',
    'read_history',
]
