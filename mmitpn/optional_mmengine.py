"""mmengine where it is installed, and replacements for what backbones, pyramid and checkpoints need where it is not.

``FastITPN``, ``ITPN``, ``ITPNPyramid`` and the loading of weights work with torch and torchvision alone, as in a
tracker or another framework. Configs, runners and everything that is named by a ``type`` need mmengine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import nn

try:
    from mmengine.logging import HistoryBuffer, MMLogger, print_log
    from mmengine.model import BaseModule, is_model_wrapper
    from mmengine.model.weight_init import update_init_info

    HAS_MMENGINE = True
except ModuleNotFoundError as _error:
    if (_error.name or '').partition('.')[0] != 'mmengine':  # it is there, and lacks something itself
        raise
    HAS_MMENGINE = False
    HistoryBuffer = MMLogger = update_init_info = None

    def print_log(text: str, logger: str | None = None, level: int = logging.INFO) -> None:
        """Log by Python's own logger ``mmitpn``."""
        del logger
        logging.getLogger('mmitpn').log(level, text)

    def is_model_wrapper(model: nn.Module) -> bool:
        """Whether a model is in one of torch's wrappers for distributed training."""
        return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))

    class BaseModule(nn.Module):
        """A module with ``init_cfg`` and ``init_weights``, of which the children's are called."""

        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__()
            self.is_init = False
            self.init_cfg = deepcopy(init_cfg)

        def init_weights(self) -> None:
            """Initialize the children; entries of ``init_cfg`` that mmengine would apply are an error.

            Raises:
                ImportError: If there are such entries.
            """
            if self.init_cfg:
                raise ImportError(f'init_cfg={self.init_cfg!r} is applied by mmengine, which is not installed')
            if not self.is_init:
                for child in self.children():
                    if hasattr(child, 'init_weights'):
                        child.init_weights()
                self.is_init = True


class NoRegistry:
    """Placeholder for a registry where mmengine is not installed: classes are unchanged, and nothing is built by name.

    Args:
        name: What it registers, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def register_module(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return a decorator that does nothing."""
        del args, kwargs
        return lambda module: module

    def build(self, cfg: Any, **kwargs: Any) -> Any:
        """Refuse to build.

        Raises:
            ImportError: Always.
        """
        del kwargs
        raise ImportError(f'building a {self.name} by its type ({cfg!r}) needs mmengine, which is not installed')
