"""Images of another number of channels: the first layer's weights are adapted in every way of loading."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict

from mmitpn.checkpoint import identify, load_pretrained
from mmitpn.checkpoint.diagnostics import backbone_settings
from mmitpn.engine.checkpointing import compare_weights
from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.layers import PatchEmbed

SIZES = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}
WIDE = {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2}
FIRST = 'patch_embed.proj.weight'


def build(**settings) -> FastITPN:
    return FastITPN(SIZES, **{'in_channels': 6, **settings})


def by_init_cfg(file: str, **settings) -> FastITPN:
    model = build(init_cfg={'type': 'Pretrained', 'checkpoint': file}, **settings)
    model.init_weights()
    return model


def by_load_pretrained(file: str, **settings) -> FastITPN:
    model = build(**settings)
    load_pretrained(model, file)
    return model


def by_torch(file: str, **settings) -> FastITPN:
    model, source = build(**settings), FastITPN.from_pretrained(file)
    model.load_state_dict(source.state_dict())
    return model


def by_mmengine(file: str, **settings) -> FastITPN:
    model, source = build(**settings), FastITPN.from_pretrained(file)
    load_state_dict(model, source.state_dict())
    return model


def by_an_average(file: str, **settings) -> FastITPN:
    average, source = ExponentialMovingAverage(build(**settings)), FastITPN.from_pretrained(file)
    average.load_state_dict({'steps': torch.tensor(0), **{f'module.{k}': v for k, v in source.state_dict().items()}})
    return average.module


def by_from_pretrained(file: str, **settings) -> FastITPN:
    return FastITPN.from_pretrained(file, **{'in_channels': 6, **settings})


LOADINGS = [by_from_pretrained, by_init_cfg, by_load_pretrained, by_torch, by_mmengine, by_an_average]


@pytest.fixture(scope='module')
def state(authors_weights):
    return authors_weights()


@pytest.fixture(scope='module')
def file(tmp_path_factory, state):
    path = tmp_path_factory.mktemp('weights') / 'rgb.pt'
    torch.save({'module': state}, path)
    return str(path)


@pytest.mark.parametrize('load', LOADINGS)
@pytest.mark.parametrize('how', ['repeat', 'repeat_unscaled', 'copy'])
def test_six_channels_take_an_rgb_file(file, state, load, how):
    model = load(file, in_channels_init=how)
    rgb = state[FIRST]
    expected = {
        'repeat': torch.cat((rgb / 2, rgb / 2), 1),
        'repeat_unscaled': torch.cat((rgb, rgb), 1),
        'copy': torch.cat((rgb, torch.zeros_like(rgb)), 1),
    }
    assert torch.equal(model.patch_embed.proj.weight, expected[how])
    others = FastITPN.from_pretrained(file).state_dict()
    assert all(torch.equal(value, others[name]) for name, value in model.state_dict().items() if name != FIRST)


@pytest.mark.parametrize(
    ('channels', 'how', 'factors'),
    [
        (1, 'repeat', None),  # the sum of all
        (2, 'repeat', [1.5, 1.5]),
        (4, 'repeat', [0.75] * 4),
        (7, 'repeat', [3 / 7] * 7),
        (1, 'repeat_unscaled', [1]),
        (5, 'repeat_unscaled', [1] * 5),
        (2, 'copy', [1, 1]),
        (5, 'copy', [1, 1, 1, 0, 0]),
    ],
)
def test_any_number_of_channels(channels, how, factors):
    source, layer = PatchEmbed(3, 8), PatchEmbed(channels, 8, in_channels_init=how)
    layer.load_state_dict(source.state_dict())
    rgb = source.proj.weight
    if factors is None:
        expected = rgb.sum(1, keepdim=True)
    else:
        expected = torch.stack([factor * rgb[:, i % 3] for i, factor in enumerate(factors)], 1)
    torch.testing.assert_close(layer.proj.weight, expected, rtol=0, atol=1e-7)


def test_outputs_start_as_those_of_the_rgb_network(file):
    rgb, other = torch.randn(2, 1, 3, 40, 64)
    gray = rgb[:, :1]
    plain = FastITPN.from_pretrained(file)
    cases = (
        ('copy', 6, torch.cat((rgb, other), 1), rgb),
        ('repeat', 6, torch.cat((rgb, rgb), 1), rgb),
        ('repeat', 1, gray, gray.expand(-1, 3, -1, -1)),
    )
    for how, channels, image, same_as in cases:
        model = FastITPN.from_pretrained(file, in_channels=channels, in_channels_init=how)
        for ours, theirs in zip(model(image), plain(same_as), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_first_layer_of_itpn(authors_itpn_weights):
    weights = authors_itpn_weights(dim=128)
    model = ITPN(WIDE, in_channels=4, in_channels_init='copy')
    load_pretrained(model, weights)
    assert torch.equal(model.patch_embed.proj.weight[:, :3], weights[FIRST])
    assert model(torch.randn(1, 4, 32, 32))[2].shape == (1, 128, 2, 2)


def test_the_report_names_what_was_done(state):
    report = load_pretrained(build(in_channels_init='copy'), state)
    assert report.names('resized') == [FIRST]
    assert f"{FIRST} was adapted from 3 to 6 input channels by in_channels_init='copy'" in report.notes


def test_a_checkpoint_of_six_channels_loads_unchanged(tmp_path):
    source = build()
    torch.save(
        {'state_dict': {f'backbone.{name}': value for name, value in source.state_dict().items()}}, tmp_path / 'f'
    )
    assert backbone_settings(identify(torch.load(tmp_path / 'f'))).endswith(', in_channels=6')
    for load in LOADINGS:
        model = load(str(tmp_path / 'f'))
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert FastITPN.from_pretrained(tmp_path / 'f').in_channels == 6  # read off the file
    assert compare_weights(source, {'state_dict': FastITPN(SIZES).state_dict()}, resizable=True)[0] == []
    assert [one.name for one in compare_weights(source, FastITPN(SIZES).state_dict())[0]] == [FIRST]  # to resume


def test_fewer_channels_than_the_file_are_an_error(tmp_path, caplog):
    message = r'checkpoint is for 6 input channels, the module for 3: set in_channels=6 on the backbone'
    state = build().state_dict()
    torch.save(state, tmp_path / 'f')
    model = FastITPN(SIZES)
    for load in (model.load_state_dict, lambda given: load_state_dict(model, given)):
        with pytest.raises(ValueError, match=message):
            load(copy.copy(state))
    with caplog.at_level(logging.CRITICAL), pytest.raises(ValueError, match=message) as error:
        load_pretrained(model, state)
    assert 'cut off' not in str(error.value)
    with pytest.raises(ValueError, match=message):
        FastITPN.from_pretrained(tmp_path / 'f', in_channels=3)


@pytest.mark.parametrize('load', LOADINGS)
def test_without_adaptation_another_number_is_an_error(file, load):
    message = r"3 input channels, the module for 6: set in_channels=3, or in_channels_init to one of 'repeat', 'repeat"
    with pytest.raises(ValueError, match=message):
        load(file, in_channels_init=None)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'in_channels': 0}, 'in_channels is 0; give an integer of at least 1'),
        ({'in_channels': (3, 3)}, r'in_channels is \(3, 3\)'),
        (
            {'in_channels_init': 'halfcopy'},
            "in_channels_init is 'halfcopy'; allowed: 'repeat', 'repeat_unscaled', 'copy'",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_images_of_another_number_of_channels():
    with pytest.raises(ValueError, match=r'\(1, 3, 32, 32\); it takes \(B, 6, H, W\).*build it with in_channels=3'):
        build()(torch.zeros(1, 3, 32, 32))


def test_weights_of_another_kernel_are_reported_by_torch():
    with pytest.raises(RuntimeError, match=r'size mismatch for proj\.weight'):
        PatchEmbed(6, 8).load_state_dict(PatchEmbed(3, 8, stride=16).state_dict())


def test_under_fsdp_an_rgb_state_dict_is_adapted(tmp_path):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    try:
        source, model = FastITPN(SIZES), fully_shard(build(in_channels_init='copy'), mesh=init_device_mesh('cpu', (1,)))
        options = StateDictOptions(full_state_dict=True, strict=True)
        set_model_state_dict(model, source.state_dict(), options=options)
        weight = model.patch_embed.proj.weight.full_tensor()
    finally:
        dist.destroy_process_group()
    assert torch.equal(weight[:, :3], source.patch_embed.proj.weight)
    assert weight[:, 3:].abs().sum() == 0
