"""One step of pixel pre-training equals that of mmpretrain's iTPN with the same weights and masks."""

from __future__ import annotations

import re

import torch
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn
from torch.testing import assert_close

from mmitpn.checkpoint import convert_from_authors, identify
from mmitpn.models.backbones import ITPN
from mmitpn.models.necks import ITPNPyramid
from mmitpn.models.selfsup import ITPNPretrain

SIDE, WIDTH, DEPTH, HEADS = 64, 64, 2, 4
# mmpretrain's first two stages have two blocks for each unit of depth.
ARCH = {'depths': (2, 2, 2), 'embed_dim': 64, 'num_heads': 2}
# mmpretrain's names of a transformer block -> the authors'
NAMES = (
    (r'\.ln1\.', '.norm1.'),
    (r'\.ln2\.', '.norm2.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^decoder_norm1\.', 'decoder_norm.'),
    (r'^ln1\.', 'decoder_norm.'),
    (r'^pos_embed$', 'absolute_pos_embed'),
)


def theirs():
    """The network of mmpretrain."""
    model = MMPRETRAIN.build(
        {
            'type': 'mmpretrain.iTPN',
            'data_preprocessor': {'type': 'mmpretrain.SelfSupDataPreprocessor'},  # whatever the default scope is
            'backbone': {
                'type': 'mmpretrain.iTPNHiViT',
                'arch': {'embed_dims': 64, 'depths': [1, 1, 2], 'num_heads': 2},
                'img_size': SIDE,
                'rpe': False,
                'layer_scale_init_value': 0.0,
                'mask_ratio': 0.75,
            },
            'neck': {
                'type': 'mmpretrain.iTPNPretrainDecoder',
                'num_patches': (SIDE // 16) ** 2,
                'embed_dim': 64,
                'fpn_dim': 32,
                'fpn_depth': 2,
                'decoder_embed_dim': WIDTH,
                'decoder_depth': DEPTH,
                'decoder_num_heads': HEADS,
            },
            'head': {
                'type': 'mmpretrain.MAEPretrainHead',
                'norm_pix': True,
                'patch_size': 16,
                'loss': {'type': 'mmpretrain.PixelReconstructionLoss', 'criterion': 'L2'},
            },
        }
    )
    model.init_weights()
    return model


def ours():
    backbone = ITPN(ARCH, img_size=SIDE, relative_position=None, layer_scale_init_value=None)
    neck = ITPNPyramid(backbone.out_channels, out_channels=32, num_outs=3, kind='linear', depth=2)
    head = {'width': WIDTH, 'depth': DEPTH, 'heads': HEADS}
    return ITPNPretrain(backbone, neck, form='pixel', mask_ratio=0.75, head=head)


def authors_names(values):
    """Weights, or gradients, of mmpretrain's network by the authors' names."""
    found = {}
    for name, value in values.items():
        name = name.removeprefix('backbone.').removeprefix('neck.')
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def in_our_layout(values, model):
    """Tensors by the authors' names -> by the names of our model."""
    info = identify(values)
    converted = convert_from_authors(info).state
    names = {ours: theirs for ours, theirs in model.head.authors_names.items() if theirs in values}
    return {
        **{f'{"backbone" if f"backbone.{n}" in model.state_dict() else "neck"}.{n}': v for n, v in converted.items()},
        **{f'head.{ours}': values[theirs] for ours, theirs in names.items()},
    }


def test_one_step_equals_mmpretrains():
    torch.manual_seed(0)
    reference, model = (same_epsilons(network.train()) for network in (theirs(), ours()))
    with torch.no_grad():  # weights of 0.02 predict nearly nothing, and any network would have this loss
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.copy_(5 * parameter if parameter.ndim > 1 else parameter + 0.1 * torch.randn_like(parameter))
    weights = in_our_layout(authors_names(reference.state_dict()), model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.startswith('teacher.')]

    images = torch.randn(3, 3, SIDE, SIDE)
    keep, _, mask = reference.backbone.masking_id(3, 0.75)
    reference.backbone.masking_id = lambda *_: (keep.sort(1).values, _restore(mask), mask)
    # It resizes its position embedding where patches are removed, by a factor that is not quite 1.
    reference.backbone.interpolate_pos_encoding = lambda *_: reference.backbone.pos_embed
    model._masks = lambda *_: (mask.view(3, 4, 4).bool(), [keep.shape[1]] * 3)

    expected = reference.loss(images, None)['loss']
    found = sum(model.loss(images).values())
    assert_close(found, expected, rtol=5e-6, atol=0)

    expected.backward()
    found.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    compared = in_our_layout({**authors_names(reference.state_dict()), **authors_names(gradients)}, model)
    for name, gradient in own.items():
        assert float((gradient - compared[name]).norm() / compared[name].norm()) < 5e-5, (
            name
        )  # rounding of fp32, which differs between processors
    assert len(own) > 60


def same_epsilons(model):
    """One epsilon for all norms: the authors' have 1e-5 or 1e-6, and mmpretrain's differ from them."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model


def _restore(mask):
    """``ids_restore`` of masks whose visible patches come first, in their order."""
    order = mask.argsort(dim=1, stable=True)
    return order.argsort(dim=1)
