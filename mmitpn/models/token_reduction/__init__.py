"""Token migration and token gathering: fewer tokens, and attention in windows, in the main stage of a backbone.

Methods of others register themselves (:func:`register_reducer`, :func:`register_score`), by what is exported here.
"""

from .gathering import GatheringAttention, ProportionalAttention, TokenGathering, WindowedAttention
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
from .windows import WindowedTokens, WindowPartition, take

__all__ = [
    'REDUCERS',
    'SCORES',
    'BaseTokenReducer',
    'GatheringAttention',
    'ProportionalAttention',
    'TokenGathering',
    'TokenMigration',
    'TokenReduction',
    'WindowPartition',
    'WindowedAttention',
    'WindowedTokens',
    'best_match',
    'register_reducer',
    'register_score',
    'split_by_redundancy',
    'take',
    'unit_features',
]
