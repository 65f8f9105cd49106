from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from torch.testing import assert_close

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import ARCHS, FastITPN
from mmitpn.registry import MODELS

NANO = {'depths': (1, 2, 2), 'embed_dim': 48, 'num_heads': 3}
SIZES = [(224, 224), (1, 1), (5, 33), (64, 47), (130, 97)]


def nano(**kwargs) -> FastITPN:
    torch.manual_seed(1)
    return FastITPN(NANO, **kwargs)


@pytest.mark.parametrize(('case', 'arch'), [('fast_tiny_cls', 'tiny'), ('fast_base_cls', 'base')])
def test_equals_the_authors_outputs(case, arch, reference_case, assert_matches_reference):
    reference = reference_case(case)
    model = FastITPN(arch).eval()
    load_pretrained(model, reference.weights)
    with torch.no_grad():
        outs = model(reference.image)
    for out, expected in zip(outs, reference.case['outs'], strict=True):
        assert_matches_reference(out, expected)


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 23.83), ('small', 39.52), ('base', 84.31), ('large', 311.25)])
def test_has_the_published_number_of_parameters(arch, millions):
    with torch.device('meta'):
        model = FastITPN(arch)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize('size', SIZES)
def test_any_input_size(size):
    model = nano().eval()
    maps = model(torch.randn(2, 3, *size))
    for x, stride, channels in zip(maps, (4, 8, 16), model.out_channels, strict=True):
        assert x.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert x.isfinite().all()
        assert x.is_contiguous(memory_format=torch.channels_last)  # dense: heads view it as (B, C, H * W)


def test_padding_is_zeros_at_the_right_and_bottom():
    model = nano().eval()
    x = torch.randn(1, 3, 37, 50)
    padded = torch.nn.functional.pad(x, (0, 14, 0, 11))
    for small, large in zip(model(x), model(padded), strict=True):
        assert_close(small, large[:, :, : small.shape[2], : small.shape[3]])


def test_images_of_a_batch_do_not_see_each_other():
    model = nano().eval()
    x = torch.randn(3, 3, 48, 64)
    alone = [model(x[i : i + 1]) for i in range(3)]
    for together, *single in zip(model(x), *alone, strict=True):
        assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-5)


def test_forward_and_backward_reach_every_parameter():
    model = nano()
    sum(x.square().mean() for x in model(torch.randn(2, 3, 40, 72))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_builds_from_a_config_by_scope():
    cfg = Config({'type': 'mmitpn.FastITPN', 'arch': 'tiny', 'drop_path_rate': 0.1})
    assert isinstance(MODELS.build(cfg), FastITPN)


@pytest.mark.parametrize('arch', ARCHS)
def test_named_archs_build(arch):
    with torch.device('meta'):
        model = FastITPN(arch)
    assert model.out_channels == tuple(model.arch['embed_dim'] // k for k in (4, 2, 1))


def test_checkpointing_gives_the_same_outputs_and_gradients():
    plain, saving = nano(), nano(with_cp=True)
    x = torch.randn(2, 3, 48, 48)
    for model in (plain, saving):
        sum(out.square().sum() for out in model(x)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_checkpointing_repeats_drop_path():
    plain, saving = nano(drop_path_rate=0.5), nano(drop_path_rate=0.5, with_cp=True)
    x = torch.randn(4, 3, 32, 32)
    for model in (plain, saving):
        torch.manual_seed(3)
        sum(out.square().sum() for out in model(x)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_drop_path_acts_only_in_training():
    model = nano(drop_path_rate=0.9)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x)[2], model(x)[2])
    model.eval()
    assert torch.equal(model(x)[2], model(x)[2])
    assert_close(model(x)[2], nano().eval()(x)[2])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_stays_finite_and_close(dtype):
    model = nano()
    x = torch.randn(2, 3, 48, 80)
    with torch.autocast('cpu', dtype=dtype):
        low = model(x)
        sum(out.float().square().mean() for out in low).backward()
    for a, b in zip(low, model(x), strict=True):
        assert_close(a.float(), b, atol=0.05, rtol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
def test_compiled_gives_the_same_output():
    model = FastITPN({'depths': (1, 1, 1), 'embed_dim': 48, 'num_heads': 3}).eval()
    compiled = torch.compile(copy.deepcopy(model), dynamic=False)
    x = torch.randn(1, 3, 50, 33)
    with torch.no_grad():
        for a, b in zip(model(x), compiled(x), strict=True):
            assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('stages', 'trained'),
    [
        (-1, {'patch_embed', 'pos_embed', 'stage1', 'merge1', 'stage2', 'merge2', 'blocks', 'norm'}),
        (0, {'stage1', 'merge1', 'stage2', 'merge2', 'blocks', 'norm'}),
        (1, {'stage2', 'merge2', 'blocks', 'norm'}),
        (2, {'blocks', 'norm'}),
        (3, set()),
    ],
)
def test_frozen_stages_stay_as_they_are(stages, trained):
    model = nano(frozen_stages=stages, drop_path_rate=0.5).train()
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == trained
    assert model.stage1[0].training == (stages < 1)
    assert all(m.training == (stages < 3) for m in model.blocks)


def test_out_indices_choose_maps_and_skip_what_is_not_needed():
    x = torch.randn(1, 3, 32, 32)
    whole = nano().eval()(x)
    for indices in ((0,), (1,), (0, 2), (0, 1)):
        model = nano(out_indices=indices)
        maps = model.eval()(x)
        assert model.strides == tuple((4, 8, 16)[i] for i in indices)
        for out, index in zip(maps, indices, strict=True):
            assert_close(out, whole[index])
        model.train()
        sum(out.sum() for out in model(x)).backward()
        # Nothing that is trained is left without a gradient: distributed training would wait for it.
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_state_dict_round_trip():
    first, second = nano(), FastITPN(NANO)
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 32, 48)
    for a, b in zip(first(x), second(x), strict=True):
        assert torch.equal(a, b)


def test_layer_scale_can_be_left_out():
    names = dict(nano(layer_scale_init_value=None).named_parameters())
    assert not any('gamma' in name for name in names)
    assert nano(layer_scale_init_value=0.25).blocks[0].gamma_1.unique().tolist() == [0.25]


def test_layer_depth_partitions_the_parameters():
    model = nano()  # 1 + merge + 2 + merge + 2 blocks
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    assert {count for _, count in depths.values()} == {9}
    first = {
        name.split('.')[0]: layer for name, (layer, _) in depths.items() if not name.startswith(('stage2', 'blocks'))
    }
    assert first == {'pos_embed': 0, 'patch_embed': 0, 'stage1': 1, 'merge1': 2, 'merge2': 5, 'norm': 8}
    assert depths['stage2.1.mlp.fc1.weight'][0] == 4
    assert depths['blocks.0.gamma_1'][0] == 6
    assert depths['blocks.1.attn.qkv.weight'][0] == 7  # the last block: exactly one step below the head
    assert model.get_layer_depth('neck.align16.weight', 'backbone.') == (8, 9)
    with pytest.raises(ValueError, match='not a parameter'):
        model.get_layer_depth('backbone.head.weight', 'backbone.')


def test_position_embedding_cache_follows_the_weights():
    model = nano().eval()
    x = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        before = model(x)[2]
    model.pos_embed.data.mul_(-30)  # as an averaged model does, past autograd's version counter
    with torch.inference_mode():
        assert not torch.allclose(before, model(x)[2])
    model.train()
    model(x)[2].sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'arch': 'huge'}, "unknown arch 'huge'; allowed: 'nano', 'tiny', 'small', 'base', 'large'"),
        ({'arch': {'depths': (1, 1, 1)}}, 'needs exactly'),
        ({'arch': {'depths': (1, 1), 'embed_dim': 64, 'num_heads': 1}}, 'three numbers'),
        ({'arch': {'depths': (1, 1, 1), 'embed_dim': 66, 'num_heads': 1}}, 'multiple of 4'),
        ({'arch': {'depths': (1, 1, 1), 'embed_dim': 64, 'num_heads': 0}}, 'num_heads is 0'),
        ({'out_indices': (0, 3)}, r'out_indices are \(0, 3\); allowed: some of 0, 1, 2'),
        ({'out_indices': ()}, 'out_indices'),
        ({'out_indices': (1, 0)}, 'ascending'),
        ({'img_size': 230}, 'multiple of 16'),
        ({'drop_path_rate': 1.5}, 'drop_path_rate'),
        ({'frozen_stages': 4}, 'frozen_stages is 4'),
        ({'weight_init': 'kaiming'}, 'trunc_normal, xavier'),
        ({'pos_embed_init': 'rope'}, "pos_embed_init is 'rope'; allowed: 'trunc_normal', 'sincos'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FastITPN(**{'arch': NANO, **kwargs})


def test_arch_of_a_wrong_type():
    with pytest.raises(TypeError, match='give a name'):
        FastITPN(3)


@pytest.mark.parametrize(
    ('image', 'error', 'message'),
    [
        (torch.zeros(3, 32, 32), ValueError, r'\(3, 32, 32\).*takes \(B, 3, H, W\)'),
        (torch.zeros(1, 4, 32, 32), ValueError, r'\(1, 4, 32, 32\)'),
        (torch.zeros(0, 3, 32, 32), ValueError, 'empty'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, 'uint8.*data preprocessor'),
        ([1, 2], TypeError, 'list'),
    ],
)
def test_bad_images_are_named(image, error, message):
    with pytest.raises(error, match=message):
        nano()(image)


def test_values_of_images_are_not_looked_at(monkeypatch):
    # Reading a value would wait for the device at every forward pass. What is NaN stays NaN, in its own image only.
    def waits(*_):
        raise AssertionError('a value was read')

    x = torch.randn(2, 3, 32, 32)
    model = nano().eval()
    expected = model(x)
    x[1, 0, 0, 0] = torch.nan
    for name in ('item', '__bool__', '__float__', 'tolist', 'cpu'):
        monkeypatch.setattr(torch.Tensor, name, waits)
    maps = model(x)
    monkeypatch.undo()
    for out, clean in zip(maps, expected, strict=True):
        assert_close(out[0], clean[0])
        assert out[1].isnan().any()
