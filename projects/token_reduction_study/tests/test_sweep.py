"""Token reduction against global attention."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console
from token_study.methods import METHODS, backbone_settings, drops_tokens
from token_study.sweep import draw_trade_off, measure_sweep, sweep_cases, sweep_table

from mmitpn.models.backbones import FastITPN


@pytest.mark.parametrize('method', METHODS)
def test_every_method_builds(method):
    model = FastITPN('nano', **backbone_settings(method, keep_ratio=0.6, window_size=4))
    reduction = model.token_reduction
    if method == 'global':
        assert reduction is None
        return
    assert (reduction.gathering is None) == (not method.startswith('gathering'))
    if drops_tokens(method):
        assert reduction.migration.keep_ratio == 0.6


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'x'; allowed: 'global', 'gathering'"):
        backbone_settings('x')


def test_rows_of_a_sweep():
    cases = sweep_cases('nano', (64, 64), methods=['global', 'gathering', 'migration'], keep_ratios=[0.5, 0.7])
    assert [(row.method, row.keep_ratio) for row in cases] == [
        ('global', 1.0),
        ('gathering', 1.0),
        ('migration', 0.5),
        ('migration', 0.7),
    ]


def test_every_dtype_has_its_own_global_row():
    cases = sweep_cases('nano', (64, 64), methods=['gathering'], keep_ratios=[0.5], dtypes=['fp32', 'bf16'])
    assert [(row.case.dtype, row.method) for row in cases] == [
        ('fp32', 'global'),
        ('fp32', 'gathering'),
        ('bf16', 'global'),
        ('bf16', 'gathering'),
    ]


@pytest.mark.slow
@pytest.mark.thorough
def test_a_sweep_is_measured_shown_and_drawn(tmp_path):
    cases = sweep_cases('nano', (320, 320), methods=['gathering+migration', 'gathering+ToMe'], keep_ratios=[0.5])
    steps = []
    rows = measure_sweep(cases, threads=1, seconds=0.1, min_rounds=2, advance=lambda: steps.append(1))
    assert len(steps) == 4
    assert rows[0]['token_overhead'] == 0
    assert 0 < rows[1]['token_overhead'] < 1
    assert rows[0]['speedup'] == rows[0]['mac_ratio'] == rows[0]['memory_ratio'] == 1
    assert rows[1]['mac_ratio'] > 1.02
    assert rows[0]['tensor_ratio'] == 1
    assert 0.5 < rows[1]['tensor_ratio'] < 1.1
    assert len(rows[1]['speedups']) == 2
    console = Console(width=150, record=True)
    console.print(sweep_table(rows))
    shown = console.export_text()
    assert 'gathering+migration' in shown
    assert 'gathering+ToMe' in shown
    scores = {'box AP': {'global': {'0': 0.5, '1': 0.6}, 'gathering+migration': {'0': 0.5}, 'x': {'0': 1.0}}}
    drawn = draw_trade_off(rows, scores, tmp_path / 'new' / 'sweep.png')
    with Image.open(drawn) as png:
        colors = {color: count for count, color in png.convert('RGB').getcolors(2**24)}
    assert min(colors.get(color, 0) for color in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E))) > 20  # one of each method
    assert colors.get((0x2C, 0xA0, 0x2C), 0) == 0  # none of the one that was not measured
    with pytest.raises(ValueError, match='nothing to draw'):
        draw_trade_off(rows, {'box AP': {'x': {'0': 1.0}}}, tmp_path / 'none.png')
