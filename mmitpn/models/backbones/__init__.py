"""Backbones: three maps, strides 4, 8, 16."""

from .fast_itpn import FastITPN

__all__ = ['FastITPN']
