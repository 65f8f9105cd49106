"""Token migration and token gathering: fewer tokens, and attention in windows, in the main stage of a backbone."""

from .attend import GatheringAttend, GlobalAttend
from .gathering import TokenGathering
from .migration import TokenMigration, TokenReducer
from .reducers import REDUCERS, register_reducer
from .reduction import TokenReduction
from .scores import SCORES, register_score
from .tokens import TokenSet
from .windows import WindowGrid

__all__ = [
    'REDUCERS',
    'SCORES',
    'GatheringAttend',
    'GlobalAttend',
    'TokenGathering',
    'TokenMigration',
    'TokenReducer',
    'TokenReduction',
    'TokenSet',
    'WindowGrid',
    'register_reducer',
    'register_score',
]
