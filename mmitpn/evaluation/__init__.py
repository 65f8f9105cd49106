"""Metrics that mmdet lacks, or that need packages which are in no package index."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = []

if find_spec('mmdet') is not None:
    from .panoptic_metric import PanopticMetric

    __all__ += ['PanopticMetric']
