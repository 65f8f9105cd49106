from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mmitpn.checkpoint import load_pretrained

ARCH = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}


def classifier(arch=ARCH, channels=64, classes=10, *, fc_norm=True) -> torch.nn.Module:
    init_default_scope('mmpretrain')
    return MODELS.build(
        Config(
            {
                'type': 'ImageClassifier',
                'backbone': {
                    'type': 'mmitpn.FastITPN',
                    'arch': arch,
                    'out_indices': (2,),
                    'final_norm': not fc_norm,
                },
                'head': {
                    'type': 'mmitpn.MeanPoolClsHead',
                    'num_classes': classes,
                    'in_channels': channels,
                    'with_norm': fc_norm,
                },
            }
        )
    ).eval()


@pytest.mark.parametrize(('case', 'arch', 'channels'), [('fast_tiny_cls', 'tiny', 384), ('fast_base_cls', 'base', 512)])
def test_logits_equal_the_authors(case, arch, channels, reference_case, assert_matches_reference):
    reference = reference_case(case)
    model = classifier(arch, channels, 1000, fc_norm=False)
    report = load_pretrained(model, {'model': reference.weights})
    assert report.parts['head'].matched == ['head.fc.weight', 'head.fc.bias']
    with torch.no_grad():
        assert_matches_reference(model(reference.image, mode='tensor'), reference.case['logits'])


def test_a_fine_tuned_file_with_the_norm_after_pooling(finetuned):
    model = classifier()
    report = load_pretrained(model, {'model': finetuned})
    assert report.count('matched') == len(model.state_dict())
    assert torch.equal(model.head.fc_norm.weight, finetuned['fc_norm.weight'])
    with torch.no_grad():
        x = torch.randn(2, 3, 40, 56)
        pooled = model.backbone(x)[0].mean((2, 3))
        expected = torch.nn.functional.layer_norm(
            pooled, (64,), finetuned['fc_norm.weight'], finetuned['fc_norm.bias'], 1e-6
        )
        expected = expected @ finetuned['head.weight'].T + finetuned['head.bias']
        torch.testing.assert_close(model(x, mode='tensor'), expected)


def test_error_names_the_position_of_the_norm(authors_weights):
    with pytest.raises(ValueError, match='set final_norm=True on the backbone and with_norm=False on the head'):
        load_pretrained(classifier(), authors_weights(classes=10))


def test_another_number_of_classes_warns_and_keeps_the_initial_head(finetuned):
    report = load_pretrained(classifier(classes=7), finetuned)
    assert any('another num_classes explains' in text for text in report.warnings)


def test_error_names_wrong_channels(finetuned):
    model = classifier(channels=48)
    with pytest.raises(ValueError, match="set the head's in_channels=64"):
        model(torch.randn(1, 3, 32, 32), mode='tensor')


def test_trains_with_loss_and_layer_depth():
    model = classifier().train()
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i) for i in (1, 2)]
    losses = model(torch.randn(2, 3, 32, 32), samples, mode='loss')
    sum(losses.values()).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize('norm', ['norm', 'fc_norm'])
def test_the_backbone_alone_starts_from_any_file(authors_weights, norm):
    backbone = classifier().backbone
    weights = authors_weights(pyramid=24, pretrain=32, norm=norm)
    report = load_pretrained(backbone, weights)
    assert report.count('matched') == len(backbone.state_dict())
    assert report.parts['main'].ignored == ['norm.weight', 'norm.bias']
    assert torch.equal(backbone.blocks[0].norm1.weight, weights['blocks.5.norm1.weight'])


def test_the_head_does_not_need_mmdet():
    code = (
        'import importlib.util, sys\n'
        'find = importlib.util.find_spec\n'
        "importlib.util.find_spec = lambda name, *rest: None if name == 'mmdet' else find(name, *rest)\n"
        "sys.modules['mmdet'] = None\n"
        'import mmitpn.models.heads as heads\n'
        'print(heads.__all__)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "['MeanPoolClsHead']"
