"""Deprecated: :mod:`mmitpn.checkpoint.mask_dino_keys` has the loading of MaskDINO's released checkpoints."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmitpn.checkpoint.diagnostics import LoadReport
from mmitpn.checkpoint.mask_dino_keys import load_mask_dino_checkpoint


def load_mask_dino(module: nn.Module, source: str | os.PathLike | Mapping[str, Any], strict: bool = True) -> LoadReport:
    """Deprecated name of :func:`mmitpn.checkpoint.mask_dino_keys.load_mask_dino_checkpoint`, for one release."""
    warnings.warn(
        'mmitpn.checkpoint.mask_dino.load_mask_dino is mmitpn.checkpoint.mask_dino_keys.load_mask_dino_checkpoint now;'
        ' the old name goes with the next release',
        DeprecationWarning,
        stacklevel=2,
    )
    return load_mask_dino_checkpoint(module, source, strict)
