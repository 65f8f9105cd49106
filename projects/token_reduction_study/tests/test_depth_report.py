"""Tables and figure of the study in 12 blocks."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console
from token_study.depth_report import SWITCHED, TUNED, depth_markdown, depth_rows, depth_table, draw_depth, pareto_front

NETWORKS = ['time of a', 'time of b']
BASELINE, WINDOWS, MIGRATION = 'global', 'windows, windows of 4', 'migration, keep 0.5'


def time(median):
    return {'median': median, 'lowest': median - 0.1, 'highest': median + 0.1, 'multiply-adds': 0.5}


@pytest.fixture
def scores():
    return {
        SWITCHED: {
            BASELINE: {'0': 0.6, '1': 0.7},
            WINDOWS: {'0': 0.5, '1': 0.62},
            MIGRATION: {'0': 0.64},
        },
        TUNED: {BASELINE: {'0': 0.65}, WINDOWS: {'0': 0.66}},
        'time of a': {BASELINE: time(1.0), WINDOWS: time(0.8), MIGRATION: time(0.9)},
        'time of b': {BASELINE: time(1.0), WINDOWS: time(1.05)},
    }


def test_the_front():
    assert pareto_front([(1.0, 0.6), (0.5, 0.5), (0.7, 0.4), (0.5, 0.3), (0.9, 0.6), (1.1, 0.6)]) == [1, 4]
    assert pareto_front([]) == []


def test_markdown(scores):
    lines = depth_markdown(depth_rows(scores, NETWORKS), NETWORKS).splitlines()
    assert lines[0].count('|') == lines[1].count('|') == 8
    rows = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]] for line in lines[2:]}
    assert list(rows) == [BASELINE, WINDOWS, MIGRATION]
    assert rows[WINDOWS] == [
        '0.560 (0.500, 0.620)',
        '-9.0 (-10.0 to -8.0)',
        '0.660',
        '+1.0',
        '0.80 (0.70-0.90) \\*',
        '1.05 (0.95-1.15)',
    ]
    # A setting is compared with global attention of the same seed, and is on the front with all seeds only.
    assert rows[MIGRATION] == ['0.640', '+4.0', '', '', '0.90 (0.80-1.00)', '']
    assert rows[BASELINE][4:] == ['1.00 (0.90-1.10) \\*', '1.00 (0.90-1.10) \\*']


def test_table(scores):
    console = Console(width=200, record=True)
    console.print(depth_table(depth_rows(scores, NETWORKS), NETWORKS))
    shown = console.export_text()
    assert '-9.0 (-10.0 to -8.0)' in shown
    assert '0.80 (0.70-0.90) *' in shown


def test_without_a_baseline_nothing_is_compared(scores):
    for task in scores.values():
        task.pop(BASELINE)
    assert '+' not in depth_markdown(depth_rows(scores, NETWORKS), NETWORKS)


def test_the_figure(scores, tmp_path):
    drawn = draw_depth(depth_rows(scores, NETWORKS), NETWORKS, tmp_path / 'new' / 'depth.png')
    with Image.open(drawn) as png:
        colors = {color: count for count, color in png.convert('RGB').getcolors(2**24)}
    blue, orange, green = ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C))
    assert min(colors.get(color, 0) for color in (blue, orange)) > 40  # global and windows, in both panels
    assert colors.get(green, 0) == 0  # windows + 4 global blocks, of which nothing is known
    del scores['time of b']
    with pytest.raises(ValueError, match="no setting has a mean IoU and a time of 'time of b': run the stages"):
        draw_depth(depth_rows(scores, NETWORKS), NETWORKS, tmp_path / 'none.png')
