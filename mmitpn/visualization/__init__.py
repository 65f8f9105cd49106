"""Images beside their predictions or feature maps, drawn as one PNG, and the curves of a training run."""

from .curves import History, draw_curve, find_scalars, read_history
from .features import PCA, draw_features, extract_features, fit_pca, pca_image
from .predictions import draw_label_maps, draw_predictions, draw_segments

__all__ = [
    'PCA',
    'History',
    'draw_curve',
    'draw_features',
    'draw_label_maps',
    'draw_predictions',
    'draw_segments',
    'extract_features',
    'find_scalars',
    'fit_pca',
    'pca_image',
    'read_history',
]
