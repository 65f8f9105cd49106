"""Checkpoints: read a file, identify its layout, convert its weights, load them and report what was loaded."""

from __future__ import annotations

import warnings
from typing import Any

from mmitpn.checkpoint.diagnostics import LoadReport
from mmitpn.checkpoint.formats import FileInfo, identify, unwrap_state_dict
from mmitpn.checkpoint.key_mapping import convert_from_authors, convert_to_authors
from mmitpn.checkpoint.loader import PretrainedModule, QuietInit, load_pretrained
from mmitpn.checkpoint.reader import read_checkpoint

__all__ = [
    'FileInfo',
    'LoadReport',
    'PretrainedModule',
    'QuietInit',
    'convert_from_authors',
    'convert_to_authors',
    'identify',
    'load_pretrained',
    'read_checkpoint',
    'unwrap_state_dict',
]

_RENAMED = {'to_ours': convert_from_authors, 'to_authors': convert_to_authors}


def __getattr__(name: str) -> Any:
    """Accept the names of the release before, with a warning, for one release."""
    if name not in _RENAMED:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    new = _RENAMED[name]
    warnings.warn(
        f'mmitpn.checkpoint.{name} is mmitpn.checkpoint.{new.__name__} now; the old name goes with the next release',
        DeprecationWarning,
        stacklevel=2,
    )
    return new
