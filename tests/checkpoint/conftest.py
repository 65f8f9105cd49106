"""Made checkpoints in the authors' layouts, of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def _authors_shapes(
    depths=(1, 2, 3),
    dim=64,
    *,
    grid=14,
    pyramid=None,
    pretrain=False,
    classes=None,
    norm='norm',
    layer_scale=True,
):
    """Names and shapes as the authors' Fast-iTPN has them; ``pyramid`` is its channels, ``pretrain`` the teacher's."""
    shapes = {'pos_embed': [1, grid * grid, dim]}

    def layer(name, *shape, bias=None):
        shapes[f'{name}.weight'] = list(shape)
        shapes[f'{name}.bias'] = [shape[0] if bias is None else bias]

    def pointwise(name, width, hidden, sub_norm=False):
        layer(f'{name}.norm2', width)
        layer(f'{name}.mlp.fc1', hidden, width, 1, 1)
        if sub_norm:
            layer(f'{name}.mlp.ffn_ln', hidden)
        layer(f'{name}.mlp.fc2', width, hidden, 1, 1)

    layer('patch_embed.proj', dim // 4, 3, 4, 4)
    index = 0
    for depth, width in zip(depths[:2], (dim // 4, dim // 2), strict=True):
        for _ in range(depth):
            pointwise(f'blocks.{index}', width, 3 * width, sub_norm=True)
            index += 1
        layer(f'blocks.{index}.norm', width)
        layer(f'blocks.{index}.reduction', 2 * width, width, 2, 2)
        index += 1
    for i in range(index, index + depths[2]):
        if layer_scale:
            shapes.update({f'blocks.{i}.gamma_{n}': [dim] for n in (1, 2)})
        shapes.update({f'blocks.{i}.attn.{x}_bias': [dim] for x in 'qv'})
        shapes.update({f'blocks.{i}.attn.{x}_proj.weight': [dim, dim] for x in 'qkv'})
        for name, shape in (('attn.proj', (dim, dim)), ('mlp.w1', (3 * dim, dim)), ('mlp.w2', (3 * dim, dim))):
            layer(f'blocks.{i}.{name}', *shape)
        for name, shape in (
            ('norm1', (dim,)),
            ('norm2', (dim,)),
            ('mlp.ffn_ln', (3 * dim,)),
            ('mlp.w3', (dim, 3 * dim)),
        ):
            layer(f'blocks.{i}.{name}', *shape)
    layer(norm, dim)
    if pyramid:
        hidden = int(pyramid * 8 / 3)
        for name, width in (('align_dim_16tofpn', dim), ('align_dim_16to8', dim // 2), ('align_dim_8to4', dim // 4)):
            layer(name, pyramid, width, 1, 1)
        for name, width in (('split_16to8', dim), ('split_8to4', pyramid)):
            layer(f'{name}.norm', width)
            layer(f'{name}.reduction', width, pyramid, 2, 2, bias=pyramid)
        for name in ('block_16to8.0', 'block_8to4.0', 'fpn_modules.0', 'fpn_modules.1', 'fpn_modules.2'):
            pointwise(name, pyramid, hidden)
    if pretrain:
        shapes['mask_token'] = [1, 1, 4 * dim]
        layer('lm_head', pretrain, dim)
        for i, side in enumerate((1, 2, 4)):
            layer(f'decoder_embed.{i}.0', pyramid)
            layer(f'decoder_embed.{i}.1', dim, pyramid, side, side)
    if classes:
        layer('head', classes, dim)
    return shapes


@pytest.fixture(scope='session')
def authors_shapes():
    """The function above."""
    return _authors_shapes


@pytest.fixture(scope='session')
def reference_shapes():
    """A function that gives the names and shapes of one of the authors' networks."""
    cases = json.loads((Path(__file__).parents[1] / 'data' / 'reference' / 'reference.json').read_text())
    return lambda name: cases[name]['shapes']


@pytest.fixture(scope='session')
def authors_weights(fill):
    """A function that makes an authors' state dict of the given size."""
    return lambda *args, **kwargs: fill.fill(_authors_shapes(*args, **kwargs))


@pytest.fixture(scope='session')
def pretrained(authors_weights):
    """A small Fast-iTPN pre-training state dict, pyramid of 24 channels."""
    return authors_weights(pyramid=24, pretrain=32)


@pytest.fixture(scope='session')
def finetuned(authors_weights):
    """A small Fast-iTPN fine-tuned state dict, 10 classes, mean pooling."""
    return authors_weights(classes=10, norm='fc_norm')


@pytest.fixture
def small_backbone():
    """A function that builds the FastITPN of the made files."""
    from mmitpn import FastITPN

    def build(**kwargs):
        return FastITPN({'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}, **kwargs)

    return build


@pytest.fixture
def small_neck():
    """A function that builds the pyramid of the made files."""
    from mmitpn import ITPNPyramid

    def build(**kwargs):
        return ITPNPyramid((16, 32, 64), **{'out_channels': 24, 'num_outs': 4, **kwargs})

    return build


@pytest.fixture
def logged(monkeypatch):
    """The texts of all reports that were logged, with their levels."""
    lines = []

    def record(text, *, level, **_):
        lines.append((level, text))

    monkeypatch.setattr('mmitpn.checkpoint.report.print_log', record)
    return lines


@pytest.fixture
def half():
    """A function that casts a state dict to fp16."""
    return lambda state: {name: value.to(torch.float16) for name, value in state.items()}
