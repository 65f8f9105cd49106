from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from torch.testing import assert_close

from mmitpn.models.backbones import FastITPN
from mmitpn.models.selfsup import HogTeacher, MovingAverageTeacher, PixelTeacher, RandomTeacher
from mmitpn.models.selfsup.target_generators import Renormalize, normalize_pixels


@pytest.mark.parametrize('teacher', [PixelTeacher, HogTeacher, RandomTeacher])
@pytest.mark.parametrize('size', [(224, 224), (48, 96), (96, 48), (16, 16)])
def test_tokens_of_any_grid(teacher, size):
    teacher = teacher()
    grid = (size[0] // 16, size[1] // 16)
    tokens = teacher(torch.randn(2, 3, *size), grid)
    assert tokens.shape == (2, *grid, teacher.channels)
    assert not tokens.requires_grad
    assert not teacher.train().training


def test_histograms_are_those_of_mmpretrain_on_its_own_grid():
    images = torch.randn(2, 3, 224, 224)
    assert_close(HogTeacher()(images, (14, 14)).flatten(1, 2), HOGGenerator()(images.clone()))


def test_histograms_of_a_wide_image_are_those_of_its_part_of_a_square():
    images = torch.randn(1, 3, 96, 96)
    teacher = HogTeacher()
    whole, part = teacher(images, (6, 6)), teacher(images[:, :, :48], (3, 6))
    assert_close(part[:, :2], whole[:, :2])  # the last row depends on what is below it


def test_a_random_teacher_warns(monkeypatch):
    logged = []
    monkeypatch.setattr('mmitpn.models.selfsup.target_generators.print_log', lambda *args: logged.append(args))
    RandomTeacher()
    assert 'random weights' in logged[0][0]
    assert logged[0][2] == logging.WARNING


def test_another_normalization():
    source, target = (
        {'mean': (100.0, 110.0, 120.0), 'std': (50.0, 60.0, 70.0)},
        {'mean': (127.0,) * 3, 'std': (1.0,) * 3},
    )
    raw = torch.rand(2, 3, 4, 4) * 255
    normed = (raw - torch.tensor(source['mean'])[:, None, None]) / torch.tensor(source['std'])[:, None, None]
    assert_close(Renormalize(source, target)(normed), raw - 127, rtol=0, atol=1e-3)


@pytest.mark.parametrize(('first', 'last'), [(0.0, 1.0), (0.9, 0.8), (0.9, 1.1)])
def test_bad_momentum(first, last):
    with pytest.raises(ValueError, match='allowed: 0 < momentum <= end_momentum <= 1'):
        MovingAverageTeacher(momentum=first, end_momentum=last)


def test_momentum_ends_where_it_should():
    backbone = FastITPN({'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}, img_size=32)
    teacher = MovingAverageTeacher(momentum=0.5)
    teacher.setup(backbone)
    teacher.copy_weights(backbone)
    MessageHub.get_current_instance().update_info('max_iters', 4)
    try:
        seen = []
        for value in range(6):
            with torch.no_grad():
                backbone.norm.weight.fill_(value)
            teacher.update(backbone)
            seen.append(float(teacher.average.module.norm.weight[0]))
    finally:
        MessageHub.get_current_instance().runtime_info.pop('max_iters')
    assert seen[0] == 0.0
    assert 0 < seen[1] < 1
    assert seen[5] == seen[4]  # momentum 1 in the end


def test_normalized_pixels():
    normalized = normalize_pixels(torch.randn(2, 3, 64, 64))
    assert_close(normalized.mean(-1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    assert_close(normalized.std(-1), torch.ones(2, 4, 4), atol=1e-3, rtol=0)
