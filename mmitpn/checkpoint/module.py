"""The base class of the backbones and necks whose weights come from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit, update_init_info

from mmitpn.checkpoint.load import load_pretrained

_PRETRAINED_TYPES = ('Pretrained', 'mmengine.Pretrained', PretrainedInit)
_PRETRAINED_KEYS = ('type', 'checkpoint', 'prefix', 'strict', 'allow_objects', 'map_location')


class PretrainedModule(BaseModule):
    """A ``BaseModule`` whose ``init_cfg=dict(type='Pretrained', ...)`` cannot fail in silence.

    mmengine's own 'Pretrained' initialisation loads what happens to match by name and logs the rest. Here such an
    entry goes through :func:`mmitpn.checkpoint.load_pretrained`, which converts every known layout and raises when the
    module was not really loaded. Entries of other types go to mmengine unchanged.

    Subclasses initialise themselves when they are built, so that they are ready without a runner too;
    :meth:`init_weights`, which hosts call afterwards, only applies ``init_cfg``.

    Args:
        init_cfg: A mmengine initialisation config or a list of them. An entry of type 'Pretrained' takes
            ``checkpoint`` (path or address) and, optionally, ``prefix`` (take only the names below it, such as
            ``'backbone.'``), ``strict`` (default True: raise instead of warn) and ``allow_objects`` (see
            :func:`mmitpn.checkpoint.read_checkpoint`).

    Raises:
        TypeError: If ``init_cfg`` is neither a dict nor a list of dicts.
        ValueError: If an entry of type 'Pretrained' has an unknown key or no checkpoint.
    """

    def __init__(self, init_cfg: dict | Sequence[dict] | None = None) -> None:
        super().__init__(init_cfg)
        for cfg in self._init_cfgs():
            if _is_pretrained(cfg):
                _check_pretrained(cfg)

    def init_weights(self) -> None:
        """Apply ``init_cfg``: what mmengine knows by mmengine, then the pre-trained weights.

        A second call does nothing but mmengine's warning.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If the checkpoint is not one for this module (unless its entry says ``strict=False``).
        """
        if self.is_init:
            super().init_weights()
            return
        cfgs, init_cfg = self._init_cfgs(), self.init_cfg
        # mmengine must not see the pre-trained entries, which it would load its own way.
        self.init_cfg = [cfg for cfg in cfgs if not _is_pretrained(cfg)]
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        try:
            for cfg in filter(_is_pretrained, cfgs):
                options = {key: cfg[key] for key in ('prefix', 'strict', 'allow_objects') if cfg.get(key) is not None}
                load_pretrained(self, cfg['checkpoint'], **options)
                if hasattr(
                    self, '_params_init_info'
                ):  # mmengine's record of who set what, while it builds a whole model
                    update_init_info(self, init_info=f'load_pretrained from {cfg["checkpoint"]}')
        except Exception:
            self.is_init = False
            raise

    def _init_cfgs(self) -> list[dict]:
        cfgs = [] if not self.init_cfg else [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg)
        for cfg in cfgs:
            if not isinstance(cfg, dict) or 'type' not in cfg:
                raise TypeError(f"init_cfg must be a dict with a 'type', or a list of them, but got {self.init_cfg!r}")
        return cfgs


def _is_pretrained(cfg: dict) -> bool:
    return cfg['type'] in _PRETRAINED_TYPES


def _check_pretrained(cfg: dict) -> None:
    unknown = sorted(set(cfg) - set(_PRETRAINED_KEYS))
    if unknown:
        raise ValueError(
            f"init_cfg of type 'Pretrained' has unknown keys {unknown}; it takes {list(_PRETRAINED_KEYS[1:])}"
        )
    if not isinstance(cfg.get('checkpoint'), str | os.PathLike) or not cfg['checkpoint']:
        raise ValueError(
            f"init_cfg of type 'Pretrained' needs checkpoint='PATH or URL', but got {cfg.get('checkpoint')!r}; "
            f'leave init_cfg out to start from random weights'
        )
