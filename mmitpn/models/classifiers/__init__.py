"""Parts of classifiers. They are built on mmpretrain: nothing is here where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmpretrain') is not None:
    from .mean_pool_head import MeanPoolClsHead

    __all__ = ['MeanPoolClsHead']
