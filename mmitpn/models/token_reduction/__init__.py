"""Token migration and token gathering: fewer tokens, and attention in windows, in the main stage of a backbone.

Methods of others register themselves (:func:`register_reducer`, :func:`register_score`), by what is exported here.
"""

import warnings
from typing import Any

from .gathering import (
    POOLS,
    GatheringAttention,
    ProportionalAttention,
    QueryGatheringAttention,
    TokenGathering,
    WindowedAttention,
    check_blocks,
)
from .migration import (
    REDUCERS,
    SCORES,
    BaseTokenReducer,
    TokenMigration,
    best_match,
    register_reducer,
    register_score,
    split_by_redundancy,
    unit_features,
)
from .reduction import TokenReduction
from .windows import WindowedTokens, WindowPartition, gather_tokens

__all__ = [
    'POOLS',
    'REDUCERS',
    'SCORES',
    'BaseTokenReducer',
    'GatheringAttention',
    'ProportionalAttention',
    'QueryGatheringAttention',
    'TokenGathering',
    'TokenMigration',
    'TokenReduction',
    'WindowPartition',
    'WindowedAttention',
    'WindowedTokens',
    'best_match',
    'check_blocks',
    'gather_tokens',
    'register_reducer',
    'register_score',
    'split_by_redundancy',
    'unit_features',
]

_RENAMED = {'TokenReducer': BaseTokenReducer, 'take': gather_tokens}


def __getattr__(name: str) -> Any:
    """Accept the names of the release before, with a warning, for one release."""
    if name not in _RENAMED:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    new = _RENAMED[name]
    warnings.warn(
        f'{__name__}.{name} is {new.__name__} now; the old name goes with the next release',
        DeprecationWarning,
        stacklevel=2,
    )
    return new
