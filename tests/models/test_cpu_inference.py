"""Maps a chunk at a time, without gradients: the same values as all at once. Freed memory is kept."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.models import cpu_inference
from mmitpn.models.layers import Attention, PointwiseBlock


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks so small that there are many of them."""
    monkeypatch.setattr(cpu_inference, '_CHUNK_VALUES', 3000)


def chunked(layer):
    cpu_inference.chunk_on_cpu(layer)
    return layer


def both(model, *inputs):
    """Outputs with gradients, which are computed whole, and without."""
    whole = model(*inputs)
    with torch.inference_mode():
        return whole, model(*inputs)


@pytest.mark.parametrize('shape', [(2, 33, 21, 24), (1, 1, 1, 24), (500, 24)])
def test_a_block(small_chunks, shape):
    whole, split = both(chunked(PointwiseBlock(24, 72, sub_norm=True)).eval(), torch.randn(shape))
    assert_close(split, whole)
    assert split.shape == shape


def test_while_training_stochastic_depth_skips_whole_samples_also_without_gradients(small_chunks):
    block, x = chunked(PointwiseBlock(24, 72, sub_norm=True, drop_path=0.5)).train(), torch.randn(8, 20, 20, 24)
    with torch.no_grad():
        same = (block(x) == x).flatten(1)
    assert 0 < same.all(1).sum() < 8
    assert (same.all(1) | ~same.all(1) & (same.float().mean(1) < 0.5)).all()


@pytest.mark.parametrize('tokens', [1, 20, 57])
def test_the_projections_of_attention(small_chunks, tokens):
    attention = chunked(Attention(24, 3))
    for bias in (attention.q_bias, attention.v_bias):
        torch.nn.init.normal_(bias)
    whole, split = both(attention.project, torch.randn(2, tokens, 24))
    for one, other in zip(whole, split, strict=True):
        assert_close(other, one)


@pytest.mark.parametrize('size', [(128, 128), (101, 259), (16, 320)])
@pytest.mark.parametrize('settings', [{}, {'concat_backbone': True}, {'start_level': 1}, {'kind': 'linear'}])
def test_backbone_and_pyramid(small_chunks, size, settings):
    backbone = FastITPN({'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 4}).eval()
    pyramid = ITPNPyramid(backbone.out_channels, out_channels=24, num_outs=4, **settings).eval()
    whole, split = both(lambda x: pyramid(backbone(x)), torch.randn(2, 3, *size))
    for one, other in zip(whole, split, strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-5)
        assert other.is_contiguous()


def test_under_autocast(small_chunks):
    pyramid = ITPNPyramid((16, 32, 64), out_channels=24).eval()
    maps = [torch.randn(1, c, 96 // s, 64 // s) for c, s in ((16, 1), (32, 2), (64, 4))]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        whole, split = both(lambda *maps: pyramid(maps), *maps)
    for one, other in zip(whole, split, strict=True):
        assert one.dtype == other.dtype
        assert_close(other, one, rtol=0.05, atol=0.05)


def test_with_gradients_and_in_a_graph_all_is_done_at_once(small_chunks):
    calls = []
    x = torch.randn(1, 40, 40, 8)

    def count(chunk):
        calls.append(chunk.shape)
        return chunk

    cpu_inference.apply_chunked(count, x, 24)
    assert len(calls) == 1
    with torch.no_grad():
        cpu_inference.apply_chunked(count, x, 24)
        assert len(calls) == 1 + 13
        torch.jit.trace(lambda x: cpu_inference.apply_chunked(count, x, 24), x, check_trace=False)
    assert all(shape == x.shape for shape in calls[14:])


@pytest.mark.parametrize('kind', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_and_the_state_dict_are_those_of_the_layers(small_chunks, kind):
    arch = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 4}
    model = FastITPN(arch, token_gathering={'window_size': 2, 'num_tokens': 2, 'learned': True}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert not any('hunk' in name for name in model.state_dict())
    whole, split = both(kind(model), torch.randn(1, 3, 101, 96))
    for one, other in zip(whole, split, strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-5)


# --- freed memory -------------------------------------------------------------------------------------------------

CODE = """
import resource
import torch
from mmitpn.models.cpu_inference import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory()
def step():
    torch.empty(2**22).fill_(1.0)  # 16 MB

for _ in range(60):
    step()
before = faults()
for _ in range(5):
    step()
print(kept, faults() - before)
"""


def run_code(**env: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_', 'LD_PRE'))}
    done = subprocess.run(
        [sys.executable, '-c', CODE], env={**clean, **env}, capture_output=True, text=True, check=True, timeout=120
    )
    kept, count = done.stdout.split()
    return kept == 'True', int(count)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is the C library of Linux')
def test_memory_is_used_again():
    kept, new_pages = run_code()
    if not kept:
        pytest.skip('the C library here is not glibc')
    assert new_pages < 1000
    own, many = run_code(MALLOC_TRIM_THRESHOLD_='131072')  # the user's choice stands
    assert not own
    if new_pages == many == 0:
        pytest.skip('page faults are not counted here')
    assert many > 10 * max(new_pages, 100)


@pytest.mark.parametrize('chosen', [{'GLIBC_TUNABLES': ''}, {'MALLOC_ARENA_MAX': '2'}])
def test_what_the_user_chose_stands(monkeypatch, chosen):
    for name in list(os.environ):
        if name.startswith(('MALLOC_', 'GLIBC_')):
            monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpu_inference.ctypes, 'CDLL', lambda *_: pytest.fail('the allocator was touched'))
    assert cpu_inference.keep_freed_memory() is False


def test_a_library_without_the_setting_is_left_alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(('MALLOC_', 'GLIBC_', 'LD_PRELOAD')):
            monkeypatch.delenv(name)
    monkeypatch.setattr(cpu_inference.ctypes, 'CDLL', lambda *_: object())
    assert cpu_inference.keep_freed_memory() is False
