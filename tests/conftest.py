"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os

from mmitpn.openmp import bound_spinning

# Before anything imports torch: as the tools do, and one thread each where pytest-xdist runs several processes.
bound_spinning()
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import importlib.util
import json
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

REFERENCE = Path(__file__).parent / 'data' / 'reference'


def _format_configs_once() -> None:
    """Formatting a whole config takes a second, and mmengine does it for each log, copy and checkpoint."""
    if importlib.util.find_spec('yapf') is None:
        return
    from yapf.yapflib import yapf_api

    format_code, formatted = yapf_api.FormatCode, {}

    def format_once(text: str, **settings: object) -> tuple[str, bool]:
        key = text, repr(settings)
        if key not in formatted:
            formatted[key] = format_code(text, **settings)
        return formatted[key]

    yapf_api.FormatCode = format_once


_format_configs_once()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--thorough``."""
    parser.addoption('--thorough', action='store_true', help='also the tests that take minutes, and every size')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where torch sees no GPU, and those marked ``thorough`` unless asked for.

    Several processes begin with the files of slow tests.
    """
    reasons = {} if torch.cuda.is_available() else {'gpu': 'torch sees no CUDA device'}
    if not config.getoption('--thorough'):
        reasons['thorough'] = 'minutes of compiling, or another size: --thorough runs it'
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if 'PYTEST_XDIST_WORKER' in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker('slow'))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- commands in documents -------------------------------------------------------------------------------------------

# Bash functions in place of the programs, so that a script prints their words and runs none of them.
RECORDERS = """
exec 3>&1 >/dev/null
record() { printf '%s\\0' "$@" $'\\1' >&3; }
mmitpn() { record mmitpn "$@"; }
python() { record python "$@"; }
bash() { record bash "$@"; }
source() { :; }
"""
# Settings that are set by options and not in the configs, and where their default is.
UNSET = {'accumulative_counts', 'with_cp', 'img_size', 'neck_lr_mult', 'lr_mult', 'seed', 'deterministic', 'draw'}
UNSET |= {'interval', 'save_best'}


@pytest.fixture(scope='session')
def shell_calls() -> Callable[[str], list[list[str]]]:
    """A function that gives the words of each call of ``mmitpn``, ``python`` and ``bash`` in a bash script.

    Nothing is run but assignments and expansions.
    """

    def find_calls(script: str) -> list[list[str]]:
        done = subprocess.run(['bash', '-c', RECORDERS + script], capture_output=True, text=True, check=True)
        assert done.stderr == ''
        return [call.split('\0')[:-1] for call in done.stdout.split('\1\0')[:-1]]

    return find_calls


@pytest.fixture(scope='session')
def unknown_settings() -> Callable[..., list[str]]:
    """A function that gives the keys of ``--cfg-options`` that a config does not have and no default stands behind.

    A misspelled key would only add a setting that nothing reads.
    """

    def find_unknown(cfg: dict, options: dict | None, allowed: set[str] | frozenset[str] = frozenset()) -> list[str]:
        unknown = []
        for key in options or {}:
            *parents, name = key.split('.')
            node = cfg
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list | tuple) else node.get(parent, {})
            if name not in node and name not in UNSET | allowed:
                unknown.append(key)
        return unknown

    return find_unknown


@pytest.fixture(scope='session')
def inductor() -> None:
    """Skip where ``torch.compile`` cannot make kernels for the CPU: it calls a C++ compiler with Python's headers."""
    compiler = os.environ.get('CXX') or 'g++'
    path = shutil.which(compiler)
    if path is None or subprocess.run([path, '--version'], capture_output=True, check=False).returncode:
        pytest.skip(f'torch.compile needs a C++ compiler, and {compiler!r} is none')
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.is_file():
        pytest.skip(f"torch.compile needs Python's headers, and there is no {header}")


@pytest.fixture(scope='session')
def fill() -> ModuleType:
    """Synthetic weights and inputs by name, and samples of outputs: what the reference outputs were made with."""
    spec = importlib.util.spec_from_file_location('reference_fill', REFERENCE / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def reference_case(fill) -> Callable[[str], SimpleNamespace]:
    """A case of the authors' reference outputs by name: ``weights`` in their layout, ``image``, the raw ``case``."""
    cases = json.loads((REFERENCE / 'reference.json').read_text())

    def get(name: str) -> SimpleNamespace:
        case = cases[name]
        return SimpleNamespace(
            case=case, weights=fill.fill(case['shapes']), image=fill.image(*case['size'], case['batch'])
        )

    return get


@pytest.fixture(scope='session')
def assert_matches_reference(fill) -> Callable[[torch.Tensor, dict], None]:
    """Compare a tensor with a reference sample: same shape, every value within 1e-4 of the largest."""

    def check(actual: torch.Tensor, expected: dict) -> None:
        sample = fill.sample(actual)
        assert sample['shape'] == expected['shape']
        scale = max(abs(value) for value in expected['values'])
        torch.testing.assert_close(
            torch.tensor(sample['values']), torch.tensor(expected['values']), rtol=0, atol=1e-4 * scale
        )

    return check


@pytest.fixture(scope='session')
def photos() -> Path:
    """The folder of real photographs beside the project; skips the test where it is absent."""
    folder = Path(__file__).parents[2] / 'shared' / 'data' / 'coco'
    if not folder.is_dir():
        pytest.skip('the photographs in COCO layout (shared/data/coco beside the project) are not here')
    return folder


# --- synthetic checkpoints in the authors' layouts, of any size -------------------------------------------------------


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


def _authors_itpn_shapes(
    depths=(1, 2, 3), dim=64, *, grid=14, pyramid=24, depth=1, layer_scale=False, relative=None, window=14
):
    """The same of the original iTPN: ``relative`` is None, 'table' or 'decomposed'."""
    shapes = {'absolute_pos_embed': [1, grid * grid, dim]}

    def layer(name, *shape, bias=True):
        shapes[f'{name}.weight'] = list(shape)
        if bias:
            shapes[f'{name}.bias'] = [shape[0]]

    def pointwise(name, width, hidden, scale=False):
        layer(f'{name}.norm2', width)
        layer(f'{name}.mlp.fc1', hidden, width)
        layer(f'{name}.mlp.fc2', width, hidden)
        if scale:
            shapes[f'{name}.gamma_2'] = [width]

    layer('patch_embed.proj', dim // 4, 3, 4, 4)
    layer('patch_embed.norm', dim // 4)
    index = 0
    for blocks, width in zip(depths[:2], (dim // 4, dim // 2), strict=True):
        for _ in range(blocks):
            pointwise(f'blocks.{index}', width, 3 * width, scale=layer_scale)
            index += 1
        layer(f'blocks.{index}.norm', 4 * width)
        layer(f'blocks.{index}.reduction', 2 * width, 4 * width, bias=False)
        index += 1
    for i in range(index, index + depths[2]):
        pointwise(f'blocks.{i}', dim, 4 * dim, scale=layer_scale)
        layer(f'blocks.{i}.norm1', dim)
        layer(f'blocks.{i}.attn.qkv', 3 * dim, dim)
        layer(f'blocks.{i}.attn.proj', dim, dim)
        if layer_scale:
            shapes[f'blocks.{i}.gamma_1'] = [dim]
        if relative == 'table':
            shapes[f'blocks.{i}.attn.relative_position_bias_table'] = [(2 * window - 1) ** 2, dim // 64]
        elif relative == 'decomposed':
            shapes |= {f'blocks.{i}.attn.rel_pos_{axis}': [2 * window - 1, 64] for axis in 'hw'}
    if pyramid:
        if pyramid != dim:
            layer('align_dim_16tofpn', pyramid, dim)
        for name, width in (('align_dim_16to8', dim // 2), ('align_dim_8to4', dim // 4)):
            layer(name, pyramid, width, bias=False)
        for name, width in (('split_16to8', dim), ('split_8to4', pyramid)):
            layer(f'{name}.norm', width)
            layer(f'{name}.reduction', 4 * pyramid, width, bias=False)
        names = [f'{name}.{i}' for name in ('block_16to8', 'block_8to4') for i in range(depth)]
        for name in (*names, 'fpn_modules.0', 'fpn_modules.1', 'fpn_modules.2'):
            pointwise(name, pyramid, 4 * pyramid)
    return shapes


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


@pytest.fixture(scope='session')
def authors_itpn_weights(fill):
    """A function that makes an authors' state dict of the original iTPN, of the given size."""
    return lambda *args, **kwargs: fill.fill(_authors_itpn_shapes(*args, **kwargs))
