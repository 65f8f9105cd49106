"""Fast-iTPN and its pyramid in a config that was written for another backbone."""

from .plan import Change, SwapError, plan_swap
from .trial import try_model
from .write import write_config

__all__ = ['Change', 'SwapError', 'plan_swap', 'try_model', 'write_config']
