from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmitpn.models.selfsup import ClipTeacher, FeatureTeacher
from mmitpn.registry import MODELS


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


def test_a_network_of_mmpretrain_from_a_config(tmp_path):
    cfg = {'type': 'mmpretrain.ResNet', 'depth': 18, 'out_indices': (2,)}
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
