"""Weights by name: a table of the released files, and the download of what it names.

Neither torch nor mmengine is imported.
"""

from mmitpn.weights.download import cache_folder, find_local_file, resolve_weights
from mmitpn.weights.zoo import WEIGHTS, WeightsEntry, find_weights

__all__ = ['WEIGHTS', 'WeightsEntry', 'cache_folder', 'find_local_file', 'find_weights', 'resolve_weights']
