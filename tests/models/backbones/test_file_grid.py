"""Files of another position grid than 14x14, as the authors' large one: 16x16, 256 pixels."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from torch.nn.parallel import DistributedDataParallel

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.layers import resample_abs_pos_embed

SIZES = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}
WIDE = {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2}


@pytest.fixture
def state(authors_weights):
    """What the authors' file holds, 16x16 positions."""
    return authors_weights(grid=16)


@pytest.fixture
def file(tmp_path, state):
    torch.save({'module': {name: value.half() for name, value in state.items()}}, tmp_path / 'large.pt')
    return str(tmp_path / 'large.pt')


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def from_file(file: str, **settings) -> FastITPN:
    return FastITPN(SIZES, init_cfg={'type': 'Pretrained', 'checkpoint': file}, **settings)


def outputs(model: torch.nn.Module, size: tuple[int, int]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model.eval()(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))))


def positions(model: torch.nn.Module, height: int, width: int) -> torch.Tensor:
    resized = resample_abs_pos_embed(model.pos_embed, model.grid, (height, width))
    return resized.detach().view(1, height, width, -1)


def same(ones, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


# --- the file of init_cfg ----------------------------------------------------------------------------------------


def test_the_grid_of_the_file_is_known_when_the_module_is_built(file):
    model = from_file(file)
    parameter = model.pos_embed
    assert (model.grid, model.pos_embed.shape) == ((16, 16), (1, 256, 64))
    model.init_weights()
    assert model.pos_embed is parameter
    assert (model.grid, model.pos_embed.shape) == ((16, 16), (1, 256, 64))


@pytest.mark.parametrize('kind', ['legacy', 'safetensors', 'ours'])
def test_shapes_are_read_off_every_kind_of_file(tmp_path, state, kind):
    import safetensors.torch

    path = tmp_path / 'file'
    if kind == 'safetensors':
        safetensors.torch.save_file(state, path)
    elif kind == 'legacy':
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        model = FastITPN(SIZES, img_size=256)
        torch.save({'state_dict': {f'backbone.{name}': value for name, value in model.state_dict().items()}}, path)
    assert from_file(str(path)).grid == (16, 16)


def test_outputs_at_the_native_size_are_those_of_the_file_as_it_is(file, state):
    model, exact, old = from_file(file), FastITPN(SIZES, img_size=256), FastITPN(SIZES, img_size=224)
    model.init_weights()
    for other in (exact, old):
        load_pretrained(other, file)
    assert torch.equal(model.pos_embed.detach(), state['pos_embed'].half().float())
    assert same(outputs(model, (256, 256)), outputs(exact, (256, 256)))
    native, resized_twice = outputs(model, (256, 256))[2], outputs(old, (256, 256))[2]
    assert (native - resized_twice).abs().max() > 1e-2 * native.abs().max()


def test_there_is_one_interpolation_at_any_other_size(file, state):
    model = from_file(file)
    model.init_weights()
    grid = state['pos_embed'].half().float().view(1, 16, 16, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(20, 30), mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(positions(model, 20, 30), expected)


def test_an_explicit_size_resizes_once_when_the_file_is_loaded(file, state):
    model = from_file(file, img_size=512)
    assert model.grid == (32, 32)
    model.init_weights()
    grid = state['pos_embed'].half().float().view(1, 16, 16, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(32, 32), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    follows = from_file(file)
    follows.init_weights()
    for one, other in zip(outputs(model, (512, 512)), outputs(follows, (512, 512)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_a_file_the_grid_is_that_of_224_pixels(tmp_path):
    assert FastITPN(SIZES).grid == (14, 14)
    for content in (None, b'', b'<html>'):  # gone, empty, a web page: init_weights says what is wrong
        path = tmp_path / 'not_there.pth'
        if content is not None:
            path.write_bytes(content)
        model = from_file(str(path))
        assert model.grid == (14, 14)
        with pytest.raises(FileNotFoundError if content is None else ValueError, match=r'not_there\.pth'):
            model.init_weights()


def test_the_report_says_that_the_grid_is_the_files(state):
    report = load_pretrained(FastITPN(SIZES), state)
    assert (report.count('resized'), 'pos_embed' in report.names('matched')) == (0, True)
    assert "pos_embed takes the file's grid of 16x16 tokens in place of 14x14" in report.notes


def test_a_file_that_does_not_fit_changes_no_grid(state):
    model = FastITPN(SIZES)
    with pytest.raises(ValueError, match='not in the file'):
        load_pretrained(model, {name: value for name, value in state.items() if not name.startswith('norm.')})
    assert (model.grid, model.pos_embed.shape) == ((14, 14), (1, 196, 64))


# --- checkpoints of such a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize('load', [lambda m, s: m.load_state_dict(s), load_state_dict, load_pretrained])
@pytest.mark.parametrize('there', ['gone', 'other', 'no file'])
def test_a_checkpoint_loads_whatever_the_config_names_now(tmp_path, authors_weights, load, there):
    source = randomized(FastITPN(SIZES, img_size=256))
    if there == 'other':
        torch.save(authors_weights(grid=7), tmp_path / 'file.pth')
    model = FastITPN(SIZES) if there == 'no file' else from_file(str(tmp_path / 'file.pth'))
    assert model.grid == ((7, 7) if there == 'other' else (14, 14))
    parameter = model.pos_embed
    load(model, source.state_dict())
    assert model.pos_embed is parameter
    assert model.grid == (16, 16)
    assert same(model.state_dict().values(), source.state_dict().values())
    assert same(outputs(model, (256, 192)), outputs(source, (256, 192)))


@pytest.mark.parametrize('load', [lambda m, s: m.load_state_dict(s), load_state_dict, load_pretrained])
def test_an_explicit_size_resizes_a_checkpoint_once(load):
    source, model = randomized(FastITPN(SIZES, img_size=256)), FastITPN(SIZES, img_size=160)
    state = source.state_dict()
    load(model, state)
    assert state['pos_embed'].shape == (1, 256, 64)  # the caller's own dict stays as it was
    assert model.grid == (10, 10)
    assert torch.equal(positions(model, 10, 10), positions(source, 10, 10))
    assert not torch.equal(positions(model, 16, 16), positions(source, 16, 16))


def test_optimizers_and_averages_keep_their_parameters():
    source = randomized(FastITPN(SIZES, img_size=256))
    model = FastITPN(SIZES)
    optimizer, average = torch.optim.AdamW(model.parameters(), lr=0.1), ExponentialMovingAverage(model)
    model.load_state_dict(source.state_dict())
    average.load_state_dict({'steps': torch.tensor(0), **{f'module.{k}': v for k, v in source.state_dict().items()}})
    sum(x.square().mean() for x in model(torch.randn(1, 3, 32, 48))).backward()
    optimizer.step()
    average.update_parameters(model)
    assert optimizer.state[model.pos_embed]['exp_avg'].shape == (1, 256, 64)
    assert not torch.equal(model.pos_embed, source.pos_embed)
    assert torch.equal(average.module.pos_embed, model.pos_embed)  # the first step copies
    copy.deepcopy(model).load_state_dict(FastITPN(SIZES).state_dict())
    assert model.grid == (16, 16)


@pytest.mark.parametrize('shape', [(1, 190, 64), (1, 256, 32), (2, 256, 64), (256, 64), (1, 0, 64)])
def test_what_is_no_square_grid_is_reported_by_torch(shape):
    model = FastITPN(SIZES)
    with pytest.raises(RuntimeError, match=r'size mismatch for pos_embed'):
        model.load_state_dict({**model.state_dict(), 'pos_embed': torch.zeros(shape)})
    assert model.grid == (14, 14)


# --- where shapes are fixed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('inside', ['backbone', 'model'])
def test_under_ddp_the_error_names_the_size_to_set(process_group, state, inside):
    model = FastITPN(SIZES)
    wrapped = DistributedDataParallel(model if inside == 'backbone' else torch.nn.ModuleDict({'backbone': model}))
    with pytest.raises(ValueError, match=r'16x16.*14x14.*DistributedDataParallel.*set img_size=256 on the backbone'):
        model.load_state_dict(FastITPN(SIZES, img_size=256).state_dict())
    with pytest.raises(ValueError, match='set img_size=256'):
        load_pretrained(model, state)
    assert (model.grid, model.pos_embed.shape) == ((14, 14), (1, 196, 64))
    del wrapped


def test_under_ddp_the_same_grid_and_an_explicit_size_load(process_group, state):
    for model in (FastITPN(SIZES, img_size=256), FastITPN(SIZES, img_size=160)):
        wrapped = DistributedDataParallel(model)
        load_pretrained(wrapped, state)
        sum(x.square().mean() for x in wrapped(torch.randn(1, 3, 32, 32))).backward()
        assert model.pos_embed.grad.abs().sum() > 0


def test_a_module_beside_a_wrapped_one_takes_the_grid(process_group, state):
    wrapped, model = DistributedDataParallel(FastITPN(SIZES)), FastITPN(SIZES)
    load_pretrained(model, state)
    assert (model.grid, wrapped.module.grid) == ((16, 16), (14, 14))


def test_under_fsdp_the_error_names_the_size_and_an_explicit_one_is_resized(process_group):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    source = randomized(FastITPN(SIZES, img_size=256))
    mesh = init_device_mesh('cpu', (1,))
    options = StateDictOptions(full_state_dict=True, strict=True)
    follows = fully_shard(FastITPN(SIZES), mesh=mesh)
    with pytest.raises(ValueError, match=r'in FSDP already, where shapes are fixed: set img_size=256 on the backbone'):
        set_model_state_dict(follows, source.state_dict(), options=options)
    explicit = fully_shard(FastITPN(SIZES, img_size=160), mesh=mesh)
    set_model_state_dict(explicit, source.state_dict(), options=options)
    expected = FastITPN(SIZES, img_size=160)
    expected.load_state_dict(source.state_dict())
    assert torch.equal(explicit.pos_embed.full_tensor(), expected.pos_embed)


# --- relative positions of iTPN ------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['table', 'decomposed'])
def test_relative_positions_take_the_files_window(tmp_path, authors_itpn_weights, kind):
    weights = authors_itpn_weights(dim=128, grid=16, relative=kind, window=7)
    torch.save(weights, tmp_path / 'file.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'file.pth')}
    built = ITPN(WIDE, relative_position=kind, init_cfg=init_cfg)
    assert [block.attn.window for block in built.blocks] == [7] * 3
    late, explicit = ITPN(WIDE, relative_position=kind), ITPN(WIDE, relative_position=kind, img_size=256)
    exact = ITPN(WIDE, relative_position=kind, img_size=256, relative_window=7)
    built.init_weights()
    report = load_pretrained(late, weights)
    assert any('take the file' in note and note.endswith('window, 7') for note in report.notes)
    load_pretrained(exact, weights)
    load_pretrained(explicit, weights)
    assert (late.blocks[0].attn.window, explicit.blocks[0].attn.window) == (7, 16)
    for model in (built, late):
        assert same(model.state_dict().values(), exact.state_dict().values())
        assert same(outputs(model, (256, 256)), outputs(exact, (256, 256)))
    again = ITPN(WIDE, relative_position=kind)
    again.load_state_dict(built.state_dict())
    assert same(outputs(again, (112, 112)), outputs(built, (112, 112)))


def test_relative_positions_that_the_file_has_not_are_for_its_grid(tmp_path, authors_itpn_weights):
    torch.save(authors_itpn_weights(dim=128, grid=16), tmp_path / 'file.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'file.pth')}
    assert ITPN(WIDE, relative_position='table', init_cfg=init_cfg).blocks[0].attn.window == 16
    settings = {'relative_position': 'table', 'relative_window': 20, 'init_cfg': init_cfg}
    assert ITPN(WIDE, **settings).blocks[0].attn.window == 20


@pytest.mark.parametrize('kind', ['table', 'decomposed'])
def test_an_explicit_window_resizes_a_checkpoint_once(kind):
    source = randomized(ITPN(WIDE, relative_position=kind))
    model = ITPN(WIDE, relative_position=kind, relative_window=5)
    model.load_state_dict(source.state_dict())
    attention = model.blocks[0].attn
    for one, other in zip(attention._positions((5, 5)), source.blocks[0].attn._positions((5, 5)), strict=True):
        assert torch.equal(one, other)
    assert attention.window == 5


def test_under_ddp_the_error_names_the_window_to_set(process_group):
    model = ITPN(WIDE, relative_position='table')
    wrapped = DistributedDataParallel(model)
    with pytest.raises(ValueError, match=r'7x7 tokens.*14x14.*set relative_window=7 on the backbone'):
        model.load_state_dict(ITPN(WIDE, relative_position='table', relative_window=7).state_dict())
    del wrapped


# --- together with what uses positions -----------------------------------------------------------------------------


def test_fewer_tokens_use_the_files_positions(state):
    reduced = {'token_gathering': {'window_size': 4, 'num_tokens': 2}, 'token_migration': {'keep_ratio': 0.5}}
    model, exact = FastITPN(SIZES, **reduced), FastITPN(SIZES, img_size=256, **reduced)
    for one in (model, exact):
        load_pretrained(one, state)
    assert same(outputs(model, (256, 256)), outputs(exact, (256, 256)))


def test_a_moving_average_teacher_follows(state):
    from mmitpn.models.selfsup import MovingAverageTeacher

    model, teacher = FastITPN(SIZES), MovingAverageTeacher()
    teacher.setup(model)
    load_pretrained(model, state)
    teacher.copy_weights(model)
    assert teacher.average.module.grid == (16, 16)
    assert torch.equal(teacher.average.module.pos_embed, model.pos_embed)
