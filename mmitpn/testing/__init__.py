"""What checks of exactness are made with."""

from .reference import build_reference_case

__all__ = ['build_reference_case']
