"""Networks that give the outputs of the authors' networks, in the same order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmitpn.checkpoint import identify, load_pretrained, read_checkpoint
from mmitpn.checkpoint.formats import FAST
from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.necks import ITPNPyramid

if TYPE_CHECKING:
    from mmitpn.models.selfsup import ITPNPretrain

# What follows the first word in a case's name describes the weights, from which the sizes are read.
FORMS: dict[str, dict[str, Any]] = {
    'det': {'num_outs': 5, 'extra_pool': 'avg', 'concat_backbone': False},
    'seg': {'num_outs': 4, 'extra_pool': 'max', 'concat_backbone': True},
    'pretrain': {'num_outs': 3, 'concat_backbone': False},
}


class ReferenceCase(nn.Module):
    """A backbone and its pyramid, as the authors use them in one task.

    Args:
        backbone: The backbone.
        neck: Its pyramid.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` to the case's outputs: maps, strides 4, 8, 16 (then 32, and 64 in detection)."""
        return self.neck(self.backbone(x))


def build_reference_case(name: str, checkpoint: str | os.PathLike | Mapping[str, Any]) -> ReferenceCase:
    """Build the network of a case of reference outputs, with its weights.

    Args:
        name: ``'det_...'`` (the authors' detection form: five levels, extra ones by average pooling), ``'seg_...'``
            (their segmentation form: four levels, each followed by the backbone's map, the extra one by max pooling)
            or ``'pretrain...'`` (the three levels alone). The rest of the name is free: sizes, layer scale and
            relative positions are read off the weights.
        checkpoint: Weights in the authors' layout, with the pyramid: a dict of tensors, wrapped or raw, or a file.

    Returns:
        The network, in evaluation mode and fp32.

    Raises:
        ValueError: If the name has another form, or the weights are not a backbone with its pyramid.
    """
    form = name.partition('_')[0]
    if form not in FORMS:
        raise ValueError(f'the case is {name!r}; give a name that starts with {" or ".join(f"{f}_" for f in FORMS)}')
    content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    info = identify(content)
    if info.arch is None or info.pyramid is None:
        raise ValueError(f'{name}: the weights are not a backbone with its pyramid, but {info.description}')
    arch = {'depths': info.arch.depths, 'embed_dim': info.arch.embed_dim, 'num_heads': info.arch.num_heads}
    scale = 0.1 if info.layer_scale else None
    size = 16 * (info.grid[0] if info.grid else 14)
    if info.family == FAST:
        backbone: nn.Module = FastITPN(arch, img_size=size, layer_scale_init_value=scale)
    else:
        backbone = ITPN(
            arch,
            img_size=size,
            layer_scale_init_value=scale,
            relative_position=info.relative_position,
            relative_window=info.relative_window or None,
        )
    neck = ITPNPyramid(
        backbone.out_channels,
        out_channels=info.pyramid.out_channels,
        kind=info.pyramid.kind,
        depth=info.pyramid.depth,
        hidden_channels=info.pyramid.hidden_channels,
        **FORMS[form],
    )
    case = ReferenceCase(backbone, neck)
    for part in (backbone, neck):
        load_pretrained(part, content)
    return case.float().eval()


class PretrainCase(nn.Module):
    """Images and masks to the predictions of the masked patches.

    Args:
        model: The network.
    """

    def __init__(self, model: ITPNPretrain) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` and masks ``(B, h, w)``, True where masked, to ``(masked patches, channels)``."""
        return self.model.head(self.model.backbone, self.model.neck, images, masks)['tokens'][masks]


def build_pretrain_case(checkpoint: str | os.PathLike | Mapping[str, Any], *, form: str = 'fast') -> PretrainCase:
    """Build Fast-iTPN's pre-training network with its weights.

    Args:
        checkpoint: Weights in the authors' pre-training layout: a dict of tensors, wrapped or raw, or a file.
        form: ``'fast'``; see :class:`mmitpn.ITPNPretrain`.

    Returns:
        The network, in evaluation mode and fp32; its teacher is random.

    Raises:
        ValueError: If the weights are not a backbone with its pyramid, or the prediction layers are not in them.
    """
    from mmitpn.models.selfsup import ITPNPretrain, RandomTeacher  # needs mmpretrain

    content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    parts = build_reference_case('pretrain', content)
    last = identify(content).body.get('lm_head.weight')
    if last is None:
        raise ValueError('the weights have no lm_head: they are not those of a pre-training network')
    model = ITPNPretrain(parts.backbone, parts.neck, form=form, teacher=RandomTeacher(len(last)))
    load_pretrained(model, content)
    return PretrainCase(model.float().eval())
