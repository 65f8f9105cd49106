"""Growing a backbone by copies of its blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import FastITPN

SEGMENTOR = Path(__file__).parents[3] / 'configs/quickstart/fast-itpn-nano_shapes-seg.pth'
DEEP = {'depths': (1, 1, 12), 'embed_dim': 192, 'num_heads': 3}


@pytest.fixture(scope='module')
def image():
    return torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def maps_of(arch, file, image, **settings):
    model = FastITPN(arch, **{'img_size': 128, **settings}).eval()
    report = load_pretrained(model, str(file))
    assert report.count('matched') + report.count('resized') == len(list(model.parameters()))
    with torch.no_grad():
        return model(image)


def test_copies_without_layer_scale_change_nothing(load_script, tmp_path, image):
    grown = load_script('grow').grow_file(SEGMENTOR, tmp_path / 'new' / 'grown.pth', factor=0)
    for ours, theirs in zip(maps_of(DEEP, grown, image), maps_of('nano', SEGMENTOR, image), strict=True):
        assert torch.equal(ours, theirs)


def test_copies_with_a_small_layer_scale_change_little(load_script, tmp_path, image):
    module = load_script('grow')
    expected = maps_of('nano', SEGMENTOR, image)[-1]

    def distance(factor):
        grown = module.grow_file(SEGMENTOR, tmp_path / f'{factor}.pth', factor=factor)
        return float((maps_of(DEEP, grown, image)[-1] - expected).norm() / expected.norm())

    assert 0 < distance(0.1) < 0.3 < distance(1.0)


def test_the_position_embedding_is_resized_by_the_loader(load_script, tmp_path, image):
    grown = load_script('grow').grow_file(SEGMENTOR, tmp_path / 'grown.pth')
    assert maps_of(DEEP, grown, image, img_size=256)[-1].shape == (1, 192, 8, 8)


def test_order_and_layer_scale_of_the_blocks(load_script):
    model = FastITPN({'depths': (0, 0, 2), 'embed_dim': 12, 'num_heads': 3}, img_size=32)
    state = model.state_dict()
    grown = load_script('grow').grow_blocks(state, times=2, factor=0.5)
    for new, old, scale in ((0, 0, 1.0), (1, 0, 0.5), (2, 1, 1.0), (3, 1, 0.5)):
        assert torch.equal(grown[f'blocks.{new}.attn.qkv.weight'], state[f'blocks.{old}.attn.qkv.weight'])
        assert torch.equal(grown[f'blocks.{new}.gamma_2'], scale * state[f'blocks.{old}.gamma_2'])
    deep = FastITPN({'depths': (0, 0, 4), 'embed_dim': 12, 'num_heads': 3}, img_size=32)
    assert set(grown) == set(deep.state_dict())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'times': 0}, 'times is 0; allowed: integers from 1'),
        ({'factor': -1}, 'factor is -1; allowed: numbers from 0'),
    ],
)
def test_bad_settings_are_explained(load_script, settings, message):
    state = FastITPN({'depths': (0, 0, 1), 'embed_dim': 12, 'num_heads': 3}, img_size=32).state_dict()
    with pytest.raises(ValueError, match=message):
        load_script('grow').grow_blocks(state, **settings)


def test_blocks_without_layer_scale_are_refused(load_script):
    arch = {'depths': (0, 0, 1), 'embed_dim': 12, 'num_heads': 3}
    state = FastITPN(arch, img_size=32, layer_scale_init_value=None).state_dict()
    with pytest.raises(ValueError, match=r'1 blocks, without layer scale \[0\]; give a FastITPN backbone'):
        load_script('grow').grow_blocks(state)


def test_command_line(load_script, tmp_path, capsys):
    module = load_script('grow')
    assert module.main([str(SEGMENTOR), str(tmp_path / 'out.pth'), '--times', '2']) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['out.pth']
    assert module.main([str(tmp_path / 'none.pth'), str(tmp_path / 'out.pth')]) == 2
    assert 'none.pth' in capsys.readouterr().err
