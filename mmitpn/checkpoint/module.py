"""The base class of the backbones and necks whose weights come from a file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmitpn.checkpoint.explain import explain_layout
from mmitpn.checkpoint.io import read_checkpoint
from mmitpn.checkpoint.layouts import FOREIGN, FileInfo, identify
from mmitpn.checkpoint.load import load_content, load_pretrained
from mmitpn.config_types import is_type
from mmitpn.optional_mmengine import BaseModule, MMLogger, print_log, update_init_info

if TYPE_CHECKING:
    from typing_extensions import Self

_PRETRAINED_TYPES = ('Pretrained', 'PretrainedInit')  # registered as the first, in pure Python configs the second
_PRETRAINED_KEYS = ('type', 'checkpoint', 'prefix', 'strict', 'allow_objects', 'map_location')


class QuietInit(BaseModule):
    """A ``BaseModule`` that tells the log file alone what ``init_weights`` did to each parameter.

    mmengine logs two lines for every parameter of the outermost module, on the console where there is no log file.
    """

    def _dump_init_info(self) -> None:
        handlers = MMLogger.get_current_instance().handlers
        if any(isinstance(handler, logging.FileHandler) for handler in handlers):
            super()._dump_init_info()


class PretrainedModule(QuietInit):
    """A ``BaseModule`` whose ``init_cfg=dict(type='Pretrained', ...)`` cannot fail in silence.

    mmengine's own 'Pretrained' initialization loads what happens to match by name and logs the rest. Here such an
    entry goes through :func:`mmitpn.checkpoint.load_pretrained`, which converts every known layout and raises when the
    module was not really loaded. Entries of other types go to mmengine unchanged.

    Subclasses initialize themselves when they are built; :meth:`init_weights`, which runners call afterwards, only
    applies ``init_cfg``. :meth:`from_pretrained` builds and loads in one step, without a runner.

    Args:
        init_cfg: An mmengine initialization config or a list of them. An entry of type 'Pretrained' takes
            ``checkpoint`` (path or address) and, optionally, ``prefix`` (take only the names below it, such as
            ``'backbone.'``), ``strict`` (default True: raise instead of warn) and ``allow_objects`` (see
            :func:`mmitpn.checkpoint.read_checkpoint`).

    Raises:
        TypeError: If ``init_cfg`` is neither a dict nor a list of dicts.
        ValueError: If an entry of type 'Pretrained' has an unknown key or no checkpoint.
    """

    def __init__(self, init_cfg: dict | Sequence[dict] | None = None) -> None:
        super().__init__(init_cfg)
        for cfg in filter(_is_pretrained, self._init_cfgs()):
            _check_pretrained(cfg)
        self._awaits_weights = any(map(_is_pretrained, self._init_cfgs()))

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike | Mapping[str, Any],
        *,
        prefix: str | None = None,
        allow_objects: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Build a module of the sizes of a checkpoint, and load it.

        What the file tells (arch, layer scale, relative positions; of a pyramid its channels, kind, depth and hidden
        channels; the grid of positions) need not be given.

        Args:
            checkpoint: Path or address of a file of any known layout, or what such a file holds.
            prefix: Take only the weights below this prefix of the names in the file.
            allow_objects: See :func:`read_checkpoint`.
            settings: Arguments of the class, before those of the file: ``out_indices=(2,)``, ``drop_path_rate=0.1``,
                ``img_size=512``, ``num_outs=4``, ... A wrong name is a TypeError, as for the class itself.

        Returns:
            The module with the weights, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is of another family, has no such module, or does not fit the settings.
        """
        if 'init_cfg' in settings:
            raise ValueError(f'from_pretrained loads {checkpoint!s}: leave init_cfg={settings["init_cfg"]!r} out')
        if isinstance(checkpoint, Mapping):
            content, name = checkpoint, 'a dict'
        else:
            content, name = read_checkpoint(checkpoint, allow_objects=allow_objects), os.fspath(checkpoint)
        try:
            info = identify(content, prefix=prefix)
            if info.layout == FOREIGN:
                raise ValueError(explain_layout(info))
            read = cls._settings_of(info, settings)
        except ValueError as error:
            raise ValueError(f'{cls.__name__}.from_pretrained({name!r}): {error}') from None
        module = cls(**{**read, **settings})
        load_content(module, content, name, prefix=prefix)
        module.is_init = True
        return module.eval()

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the class that a file tells.

        Args:
            info: The file.
            given: Those that the user gives.

        Raises:
            ValueError: If the file has no such module, or the arguments contradict it.
        """
        raise NotImplementedError(f'{cls.__name__} does not say which settings a file tells')

    def _dump_init_info(self) -> None:
        """Nothing: as the outermost module it is recorded before the file is loaded, of which the report tells more."""

    def _file_info(self) -> FileInfo | None:
        """What the file of ``init_cfg`` is, by the names and shapes of its weights, of which the values are not read.

        None without such a file. One that cannot be read is None too: a model that is built to be given other weights
        does not need it, and where it is needed :meth:`init_weights` reports what is wrong with it.
        """
        cfg = next(filter(_is_pretrained, reversed(self._init_cfgs())), None)
        if cfg is None:
            return None
        try:
            content = read_checkpoint(cfg['checkpoint'], allow_objects=cfg.get('allow_objects'), mmap=True)
            return identify(content, prefix=cfg.get('prefix'))
        except (OSError, ValueError) as error:
            print_log(f'the file of init_cfg is not read while the module is built: {error}', 'current', logging.DEBUG)
            return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if any(name.startswith(prefix) for name in state_dict):
            self._awaits_weights = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _remind_of_init_cfg(self) -> None:
        """Warn, once, when the module is used before the weights that its ``init_cfg`` names were loaded."""
        if not self._awaits_weights or torch.compiler.is_compiling():
            return
        self._awaits_weights = False
        if not self.is_init:
            name = type(self).__name__
            warnings.warn(
                f'{name} runs with random weights: the checkpoint of its init_cfg is loaded by init_weights(), which'
                f' runners call and nothing called yet. Call it, or build the module by {name}.from_pretrained(FILE)',
                stacklevel=3,
            )

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
    return is_type(cfg, *_PRETRAINED_TYPES)


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
