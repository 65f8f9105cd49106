"""Classification head for mmpretrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from mmitpn.registry import MODELS

from ..layers import layer_norm


@MODELS.register_module()
class MeanPoolClsHead(LinearClsHead):
    """Mean over all positions, LayerNorm, linear layer: the head of the authors' fine-tuned Fast-iTPN.

    The authors' files with mean pooling have the norm after it (``fc_norm``) and none at the end of the backbone: set
    ``final_norm=False`` on the backbone. Files with a ``norm`` and no ``fc_norm`` need ``final_norm=True`` on the
    backbone and ``with_norm=False`` here. ``mmitpn.checkpoint.load_pretrained`` loads head and norm too.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the backbone's last map.
        with_norm: Whether there is a LayerNorm.
        **kwargs: Arguments of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc``, ``init_cfg``.
    """

    # Names of the weights in the authors' files; read by mmitpn.checkpoint.
    authors_names: Mapping[str, str] = {
        'fc.weight': 'head.weight',
        'fc.bias': 'head.bias',
        'fc_norm.weight': 'fc_norm.weight',
        'fc_norm.bias': 'fc_norm.bias',
    }

    def __init__(self, num_classes: int, in_channels: int, *, with_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.fc_norm = layer_norm(in_channels) if with_norm else nn.Identity()

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Pool and normalize.

        Args:
            feats: Maps of the backbone; the last one, ``(B, C, H, W)``, is used.

        Returns:
            ``(B, C)``.

        Raises:
            ValueError: If the map and the head differ in channels.
        """
        x = feats[-1]
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f'the head was given a map of {x.shape[1]} channels, but its in_channels is {self.in_channels}: '
                f"set the head's in_channels={x.shape[1]}"
            )
        return self.fc_norm(x.mean(dim=(2, 3)))
