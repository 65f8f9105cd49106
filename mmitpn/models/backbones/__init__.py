"""Backbones: three maps, strides 4, 8, 16."""

from .fast_itpn import FastITPN
from .itpn import ITPN

__all__ = ['ITPN', 'FastITPN']
