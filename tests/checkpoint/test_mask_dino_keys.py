"""Released MaskDINO checkpoints: names, backbones, and what does not fit."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmdet.models.backbones import ResNet, SwinTransformer

from mmitpn.checkpoint.mask_dino_keys import (
    convert_backbone,
    convert_head_key,
    convert_resnet_key,
    is_mask_dino,
    load_mask_dino_checkpoint,
)
from mmitpn.models.heads import MaskDINOHead

SMALL = {
    'in_channels': (256, 512, 1024, 2048),
    'num_things_classes': 3,
    'feat_channels': 32,
    'out_channels': 16,
    'num_queries': 10,
    'pixel_decoder': {'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 32},
    'decoder': {'num_layers': 2, 'num_heads': 4, 'feedforward_channels': 32},
}
BOX_NAMES = ('_bbox_embed', 'bbox_embed.0', 'decoder.bbox_embed.1')


def released(head):
    """A head's weights as they are released: the inverse of the table of names."""
    theirs = {}
    for name in head.state_dict():
        part, rest = name.split('.', 1)
        rest = rest.replace('ffn.layers.0.0', 'linear1').replace('ffn.layers.1', 'linear2')
        if part == 'pixel_decoder':
            rest = rest.replace('norms.0', 'norm1').replace('norms.1', 'norm2')
            rest = rest.replace('lateral.conv', 'adapter_1').replace('lateral.gn', 'adapter_1.norm')
            rest = rest.replace('output.conv', 'layer_1').replace('output.gn', 'layer_1.norm')
            if rest.startswith(('encoder', 'level_embed')):
                rest = f'transformer.{rest}'
        else:
            rest = rest.replace('norms.0', 'norm2').replace('norms.1', 'norm1').replace('norms.2', 'norm3')
            rest = rest.replace('self_attn.attn', 'self_attn').replace('label_embed', 'label_enc')
            rest = rest.replace('memory_proj', 'enc_output').replace('memory_norm', 'enc_output_norm')
            rest = rest.replace('box_embed', '_bbox_embed')
        new = f'sem_seg_head.{part}.{rest}'
        assert convert_head_key(new) == name
        theirs[new] = torch.randn_like(head.state_dict()[name])
    return theirs


@pytest.mark.parametrize('box_name', BOX_NAMES)
@pytest.mark.parametrize('wrapped', [False, True])
def test_any_of_the_names_of_the_box_head_is_enough(box_name, wrapped):
    head = MaskDINOHead(**SMALL)
    weights = released(head)
    weights = {name.replace('_bbox_embed', box_name): value for name, value in weights.items()}
    weights['criterion.empty_weight'] = torch.ones(4)
    report = load_mask_dino_checkpoint(head, {'model': weights} if wrapped else weights)
    assert report.loaded
    assert report.count('matched') == len(head.state_dict())
    assert report.names('ignored') == ['criterion.empty_weight']
    prefix = f'sem_seg_head.predictor.{box_name}.layers.1.weight'
    assert torch.equal(head.predictor.box_embed.layers[1].weight, weights[prefix])


def test_two_values_of_one_weight_are_reported():
    head = MaskDINOHead(**SMALL)
    weights = released(head)
    weights['sem_seg_head.predictor.bbox_embed.3.layers.0.bias'] = torch.randn(32)
    with pytest.raises(ValueError, match=r'one weight has two values in the file: .*bbox_embed\.3'):
        load_mask_dino_checkpoint(head, weights)


def test_what_does_not_fit_is_reported_and_nothing_changes():
    weights = released(MaskDINOHead(**SMALL))
    head = MaskDINOHead(**{**SMALL, 'num_things_classes': 5})
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(ValueError, match=r'class_embed.weight is \(5, 32\) in the model, and \(3, 32\) in the file'):
        load_mask_dino_checkpoint(head, weights)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    report = load_mask_dino_checkpoint(head, weights, strict=False)
    assert report.names('missing') == [
        f'predictor.{n}' for n in ('class_embed.weight', 'class_embed.bias', 'label_embed.weight')
    ]


def detectron2_resnet(model):
    """A ResNet of mmdet as detectron2 names it, with frozen norms."""
    theirs = {}
    for name, value in model.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        if name.startswith(('conv1', 'bn1')):
            new = name.replace('conv1', 'stem.conv1').replace('bn1', 'stem.conv1.norm')
        else:
            layer, rest = name.split('.', 1)
            rest = rest.replace('bn1', 'conv1.norm').replace('bn2', 'conv2.norm').replace('bn3', 'conv3.norm')
            rest = rest.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
            new = f'res{int(layer.removeprefix("layer")) + 1}.{rest}'
        assert convert_resnet_key(new) == name
        theirs[f'backbone.{new}'] = torch.randn_like(value)
    return theirs


class Model(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.panoptic_head = backbone, head


def test_a_whole_model_from_a_pickle(tmp_path):
    model = Model(ResNet(50), MaskDINOHead(**SMALL))
    weights = {**released(model.panoptic_head), **detectron2_resnet(model.backbone)}
    path = tmp_path / 'model_final.pkl'
    arrays = {name: value.numpy() for name, value in weights.items()}
    path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'x'}))
    report = load_mask_dino_checkpoint(model, path)
    assert report.loaded
    assert not report.count('missing')
    assert len(report.parts['backbone'].matched) == 265
    assert torch.equal(model.backbone.layer3[2].bn2.running_var, weights['backbone.res4.2.conv2.norm.running_var'])
    assert torch.equal(
        model.panoptic_head.predictor.label_embed.weight, weights['sem_seg_head.predictor.label_enc.weight']
    )


def test_another_backbone_stays():
    model = Model(nn.Linear(1, 1), MaskDINOHead(**SMALL))
    report = load_mask_dino_checkpoint(model, {**released(model.panoptic_head), **detectron2_resnet(ResNet(50))})
    assert report.loaded
    assert 'backbone of the model stays' in report.warnings[0]
    assert len(report.parts['backbone'].ignored) == 265


def test_a_swin_transformer():
    model = SwinTransformer(embed_dims=24, depths=(2, 2), num_heads=(2, 2), strides=(4, 2), out_indices=(0, 1))
    state = model.state_dict()
    theirs = {}
    for name, value in state.items():
        new = name.replace('stages', 'layers').replace('attn.w_msa', 'attn').replace('projection', 'proj')
        new = new.replace('ffn.layers.0.0', 'mlp.fc1').replace('ffn.layers.1', 'mlp.fc2')
        theirs[f'backbone.{new}'] = torch.randn_like(value) if value.is_floating_point() else value
    ours = convert_backbone(theirs)
    assert ours.keys() == state.keys()
    assert all(ours[name].shape == value.shape for name, value in state.items())


def test_other_files_are_refused():
    assert not is_mask_dino({'state_dict': {'a': torch.zeros(1)}})
    with pytest.raises(ValueError, match='not a released MaskDINO checkpoint'):
        load_mask_dino_checkpoint(MaskDINOHead(**SMALL), {'a': torch.zeros(1)})


def test_the_old_name_is_accepted_with_a_warning():
    from mmitpn.checkpoint.mask_dino import load_mask_dino

    head = MaskDINOHead(**SMALL)
    with pytest.warns(DeprecationWarning, match='mask_dino_keys.load_mask_dino_checkpoint now'):
        assert load_mask_dino(head, released(head)).loaded
