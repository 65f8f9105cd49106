"""The methods and scores that token migration is compared with, registered as users register their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from token_study import PruneThenMerge, SemanticTokens, TokenMerging, TokenPropagation
from torch import nn

from mmitpn.models.layers import Attention, SwiGLU, TransformerBlock
from mmitpn.models.token_reduction import SCORES, TokenMigration, WindowedTokens, WindowPartition

METHODS = ['TokenMerging', 'PruneThenMerge', 'TokenPropagation', 'SemanticTokens']
BASELINE_SCORES = ['mean', 'checkerboard', 'random']
ROOT = Path(__file__).parents[3]


def block() -> TransformerBlock:
    return TransformerBlock(12, Attention(12, 2), SwiGLU(12, 24))


@pytest.mark.parametrize('kind', METHODS)
@pytest.mark.parametrize('gathering', [None, {'window_size': 4, 'num_tokens': 4}])
@pytest.mark.parametrize('keep_ratio', [0.5, 0.2])
def test_gives_the_full_grid_and_learns(network, kind, gathering, keep_ratio):
    model = network(token_migration={'type': kind, 'keep_ratio': keep_ratio, 'at': (1,)}, token_gathering=gathering)
    counts = []
    model.token_reduction.observer = lambda _, tokens, __: counts.append(tokens.x.shape[2])
    out = model(torch.randn(2, 3, 200, 333))[-1]
    assert out.shape == (2, 48, 13, 21)
    assert counts[1] <= round(keep_ratio * counts[0])
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('kind', METHODS)
def test_keeping_all_is_the_same_to_the_bit(network, kind):
    image = torch.randn(1, 3, 200, 333)
    model = network(token_migration={'type': kind, 'keep_ratio': 1.0})
    assert torch.equal(model.eval()(image)[-1], network().eval()(image)[-1])


def test_tokens_that_are_the_same_merge_without_a_loss():
    grid = WindowPartition(4, 4)
    x = torch.randn(1, 4, 2, 12).repeat_interleave(2, 2)  # every token twice, side by side
    merging = TokenMerging(4, at=(0,), keep_ratio=0.5)
    tokens = merging(WindowedTokens.of(x, grid), block())
    assert tokens.x.shape[2] == 8
    assert tokens.weight.tolist() == [[[2.0] * 8]]
    torch.testing.assert_close(tokens.restore(), x)


def test_merged_tokens_are_means_and_nothing_is_lost():
    grid = WindowPartition(5, 7, 4)
    x = torch.randn(2, 5, 7, 12)
    merging = TokenMerging(4, at=(0, 1), keep_ratio=0.4)
    tokens = WindowedTokens.of(x, grid)
    for _ in merging.at:
        tokens = merging(tokens, block())
    assert tokens.weight.sum() == 2 * 35  # padding weighs nothing
    torch.testing.assert_close(
        (tokens.x * tokens.weight.unsqueeze(-1)).sum((1, 2)), x.sum((1, 2)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('grid', [WindowPartition(7, 9), WindowPartition(7, 9, 4), WindowPartition(1, 5, 2)])
@pytest.mark.parametrize('pruned', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('keep_ratio', [0.75, 0.3])
def test_pruned_tokens_return_unchanged_and_the_others_are_merged(grid, pruned, keep_ratio):
    x = torch.randn(2, grid.height, grid.width, 12)
    full = WindowedTokens.of(x, grid)
    count = grid.tokens_per_window
    keep = max(1, round(keep_ratio * count))
    tokens = PruneThenMerge(4, at=(0,), pruned=pruned, keep_ratio=keep_ratio)(full, block())
    assert tokens.x.shape[2] == keep
    assert (tokens.weights() > 0).any(-1).all()  # no window is left with padding only
    back = WindowedTokens.of(tokens.restore(), grid)
    number = round(pruned * (count - keep))
    same = (back.x == full.x).all(-1) & (full.weights() > 0)
    gone = full.weights().sum() - tokens.weights().sum()  # tokens that nothing stands for meanwhile
    assert gone <= 2 * grid.num_windows * number
    if grid.padding == (0, 0):
        assert gone == 2 * number
    assert same.sum() >= gone
    if pruned == 1:
        assert torch.equal(tokens.restore(), x)
    if not pruned:
        torch.testing.assert_close(
            (tokens.x * tokens.weights().unsqueeze(-1)).sum((1, 2)), x.sum((1, 2)), rtol=1e-4, atol=1e-4
        )


def test_without_pruning_it_is_token_merging():
    tokens, the_block = WindowedTokens.of(torch.randn(1, 6, 6, 12), WindowPartition(6, 6, 3)), block()
    merged, both = (kind(4, at=(0,))(tokens, the_block) for kind in (TokenMerging, partial(PruneThenMerge, pruned=0)))
    assert torch.equal(merged.x, both.x)
    assert torch.equal(merged.weight, both.weight)


def test_the_least_attended_tokens_are_pruned():
    tokens, the_block = WindowedTokens.of(torch.randn(1, 5, 5, 12), WindowPartition(5, 5)), block()
    query, key, _ = the_block.attn.project(the_block.norm1(tokens.x).flatten(1, 2))
    attention = (query.mean(2, keepdim=True) @ key.transpose(-1, -2) / 6**0.5).softmax(-1).mean(1)[0, 0]
    kept = PruneThenMerge(4, at=(0,), pruned=1.0, keep_ratio=0.4)(tokens, the_block).index[0, 0]
    assert sorted(attention.topk(10).indices.tolist()) == kept.tolist()


def test_padding_is_pruned_first():
    tokens = WindowedTokens.of(torch.randn(1, 7, 7, 12), WindowPartition(7, 7, 4))
    kept = PruneThenMerge(4, at=(0,), pruned=1.0, keep_ratio=9 / 16)(tokens, block())
    assert kept.weight.sum(-1).tolist() == [[9, 9, 9, 9]]  # of 16, 12, 12 and 9 that are there


def test_what_is_dropped_is_propagated_in_equal_parts():
    x = torch.randn(1, 4, 4, 12)
    propagation = TokenPropagation(4, at=(0,), alpha=0.5, keep_ratio=0.5)
    tokens = propagation(WindowedTokens.of(x, WindowPartition(4, 4)), block())
    kept = tokens.index[0, 0]
    dropped = [i for i in range(16) if i not in kept.tolist()]
    rows = x.view(16, 12)
    torch.testing.assert_close(
        tokens.x.sum((0, 1, 2)), rows[kept].sum(0) + 0.5 * rows[dropped].sum(0), rtol=1e-4, atol=1e-4
    )
    assert tokens.weight.sum() == pytest.approx(8 + 0.5 * 8)
    torch.testing.assert_close(tokens.restore().view(16, 12)[dropped], rows[dropped])


def test_semantic_tokens_stand_for_all_of_the_grid():
    grid = WindowPartition(7, 9, 4)
    reducer = SemanticTokens(4, at=(0,), keep_ratio=0.25)
    tokens = reducer(WindowedTokens.of(torch.randn(1, 7, 9, 12), grid), block())
    assert tokens.weight.sum() == 63
    assert tokens.restore().shape == (1, 7, 9, 12)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'type': 'SemanticTokens', 'at': (1, 2)}, 'semantic tokens are made once: give one block'),
        ({'type': 'TokenPropagation', 'alpha': 2}, 'alpha is 2; allowed: 0 to 1'),
        ({'type': 'PruneThenMerge', 'pruned': 1.5}, 'pruned is 1.5; allowed: 0 .all are merged. to 1 .all are pruned.'),
        ({'type': 'TokenPropagation', 'neighbours': 0}, 'neighbours is 0; allowed: integers from 1'),
    ],
)
def test_bad_settings_are_explained(network, settings, message):
    with pytest.raises(ValueError, match=message):
        network(token_migration=settings)


@pytest.mark.parametrize('kind', METHODS)
def test_exported_gives_the_same_output(network, kind):
    gathering = {'window_size': 4, 'num_tokens': 4}
    model = network(token_gathering=gathering, token_migration={'type': kind}).eval()
    x = torch.randn(1, 3, 200, 160)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x + 0.1), model(x + 0.1))


@pytest.mark.filterwarnings('ignore')
def test_onnx_gives_the_same_output(network):
    pytest.importorskip('onnx', reason='the onnx package writes the file')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime runs the file')
    gathering = {'window_size': 4, 'num_tokens': 4}
    model = network(token_gathering=gathering, token_migration={'type': 'TokenPropagation'}).eval()
    x, file = torch.randn(1, 3, 200, 160), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
    session = runtime.InferenceSession(file.getvalue())
    found = session.run(None, {session.get_inputs()[0].name: (x + 0.1).numpy()})
    with torch.no_grad():
        for ours, theirs in zip(model(x + 0.1), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)


def features_of(tokens):
    return F.normalize(tokens.x, dim=-1)


@pytest.mark.parametrize('grid', [WindowPartition(7, 9), WindowPartition(7, 9, 4), WindowPartition(1, 5, 2)])
@pytest.mark.parametrize('follow', [False, True])
@pytest.mark.parametrize('score', BASELINE_SCORES)
def test_every_token_returns_to_its_place(grid, score, follow):
    x = torch.randn(2, grid.height, grid.width, 6)
    tokens = WindowedTokens.of(x, grid)
    migration = TokenMigration(4, score=score, follow=follow, keep_ratio=0.6, at=(0, 1, 2))
    for _ in migration.at:
        tokens = migration(tokens, nn.Identity())
    assert tokens.x.shape[2] < grid.tokens_per_window
    assert torch.equal(tokens.restore(), x)


@pytest.mark.parametrize('score', BASELINE_SCORES)
def test_dropped_tokens_lie_on_both_halves_of_the_checkerboard(score):
    tokens = WindowedTokens.of(torch.randn(1, 6, 6, 8), WindowPartition(6, 6))
    kept = TokenMigration(2, score=score, at=(0,))(tokens, nn.Identity()).index[0, 0]
    assert len(kept) == 18
    assert ((kept // 6 + kept % 6) % 2 == 0).sum() == 9


@pytest.mark.parametrize('rounds', [1, 2, 3])
@pytest.mark.parametrize('score', BASELINE_SCORES)
def test_padding_is_dropped_first(score, rounds):
    tokens = WindowedTokens.of(torch.randn(1, 7, 7, 4), WindowPartition(7, 7, 4))
    migration = TokenMigration(2, score=score, rounds=rounds, follow=False, keep_ratio=9 / 16, at=(0,))
    kept = migration(tokens, nn.Identity())
    assert kept.weight.sum(-1).tolist() == [[9, 9, 9, 9]]  # of 16, 12, 12 and 9 that are there


def test_the_token_that_differs_is_the_least_similar_to_the_mean():
    x = torch.ones(1, 6, 6, 4) + 0.01 * torch.randn(1, 6, 6, 4)
    x[0, 2, 3] = torch.tensor([1.0, -3.0, 2.0, -4.0])
    tokens = WindowedTokens.of(x, WindowPartition(6, 6))
    assert SCORES['mean'](features_of(tokens), tokens.positions(), tokens.grid)[0, 0].argmin() == 2 * 6 + 3


def test_the_checkerboard_does_not_depend_on_the_tokens():
    tokens = WindowedTokens.of(torch.randn(1, 2, 3, 5), WindowPartition(2, 3))
    assert SCORES['checkerboard'](features_of(tokens), tokens.positions(), tokens.grid).tolist() == [
        [[0, 1, 0, 1, 0, 1]]
    ]


@pytest.mark.parametrize('imports', [True, False])
def test_a_config_finds_the_methods_by_custom_imports(tmp_path, imports):
    """In a fresh process: the package alone knows token migration only."""
    config = ROOT / 'projects/token_reduction_study/configs/dino_fast-itpn-nano_shapes_tome.py'
    if not imports:
        text = config.read_text().replace('../../../', f'{ROOT}/')
        config = tmp_path / 'no_imports.py'
        config.write_text('\n'.join(line for line in text.splitlines() if 'custom_imports' not in line))
    script = (
        'import sys\nfrom mmengine.config import Config\nimport mmitpn\ncfg = Config.fromfile(sys.argv[1])\n'
        "backbone = dict(cfg.model.backbone, init_cfg=None)\nbackbone.pop('type')\n"
        'print(type(mmitpn.FastITPN(**backbone).token_reduction.migration).__name__)\n'
    )
    path = os.pathsep.join((str(ROOT / 'projects/token_reduction_study'), str(ROOT)))
    done = subprocess.run(
        [sys.executable, '-c', script, str(config)],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        check=False,
    )
    if imports:
        assert done.stdout.split() == ['TokenMerging'], done.stderr
    else:
        assert "token_migration has the type 'TokenMerging'; allowed: 'TokenMigration'\n" in done.stderr
