"""The version of the package, in one place: setup.py reads it from here without importing torch."""

from __future__ import annotations

__version__ = '0.1.0'
