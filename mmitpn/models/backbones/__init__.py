"""Backbones: Fast-iTPN, and the family before it."""

from .fast_itpn import ARCHS, FastITPN, resolve_arch
from .itpn import ITPN

__all__ = ['ARCHS', 'ITPN', 'FastITPN', 'resolve_arch']
