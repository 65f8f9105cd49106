"""Token migration and token gathering: fewer tokens, and attention in windows, in the main stage of a backbone.

Methods of others register themselves (:func:`register_reducer`, :func:`register_score`), by what is exported here.
"""

from .gathering import GatheringAttend, GatheringAttention, GlobalAttend, TokenGathering
from .migration import (
    REDUCERS,
    SCORES,
    TokenMigration,
    TokenReducer,
    best_match,
    register_reducer,
    register_score,
    split_by_redundancy,
    unit_features,
)
from .reduction import TokenReduction
from .windows import TokenSet, WindowGrid, take

__all__ = [
    'REDUCERS',
    'SCORES',
    'GatheringAttend',
    'GatheringAttention',
    'GlobalAttend',
    'TokenGathering',
    'TokenMigration',
    'TokenReducer',
    'TokenReduction',
    'TokenSet',
    'WindowGrid',
    'best_match',
    'register_reducer',
    'register_score',
    'split_by_redundancy',
    'take',
    'unit_features',
]
