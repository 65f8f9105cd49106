"""Fast-iTPN and its pyramid in a config that was written for another backbone."""

from .families import Outcome, attempt, host_families, try_families
from .plan import Change, SwapError, plan_swap
from .trial import try_model
from .write import write_config

__all__ = [
    'Change',
    'Outcome',
    'SwapError',
    'attempt',
    'host_families',
    'plan_swap',
    'try_families',
    'try_model',
    'write_config',
]
