from __future__ import annotations

import pytest
import torch

from mmitpn.models.token_reduction import WindowPartition


@pytest.mark.parametrize(('grid', 'side'), [((64, 64), 16), ((50, 84), 16), ((7, 3), 16), ((1, 33), 4), ((9, 9), 2)])
def test_a_cut_grid_is_put_together_again(grid, side):
    windows = WindowPartition.fit(*grid, side)
    x = torch.randn(2, *grid, 5)
    parts = windows.partition(x)
    assert parts.shape == (2, windows.number, windows.slots, 5)
    assert max(windows.tall, windows.wide) <= side
    assert torch.equal(windows.merge(parts), x)


def test_windows_are_equal_and_little_is_padded():
    windows = WindowPartition.fit(50, 84, 16)  # 800x1333
    assert (windows.rows, windows.columns, windows.tall, windows.wide) == (4, 6, 13, 14)
    assert windows.padding == (2, 0)
    weight = windows.weight(torch.device('cpu'))
    assert weight.shape == (1, 24, 13 * 14)
    assert weight.sum() == 50 * 84
    assert WindowPartition.fit(64, 64, 16).weight(torch.device('cpu')) is None


def test_neighbours_in_a_window_are_neighbours_in_the_grid():
    windows = WindowPartition.fit(4, 6, 3)
    x = torch.arange(24).view(1, 4, 6, 1)
    assert windows.partition(x)[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize(('number', 'cut'), [(4, (2, 2)), (1, (1, 1)), (8, (2, 4)), (3, (1, 3)), (256, (16, 16))])
def test_cells_are_as_square_as_can_be(number, cut):
    windows = WindowPartition(16, 16)
    assert windows.cut(number) == cut
    cells = windows.cells(cut, torch.device('cpu'))
    sizes = cells.bincount()
    assert len(sizes) == number
    assert sizes.sum() == 256
    assert sizes.max() - sizes.min() <= 16  # a row or a column, where the side is no multiple
    middles = windows.middles(cut, torch.device('cpu'))
    assert cells[middles].tolist() == list(range(number))  # the middle of a cell lies in it


def test_about_so_many_cells():
    rows, columns = WindowPartition(16, 16).cut(127, exact=False)  # a prime
    assert abs(rows - columns) <= 1
    assert 115 < rows * columns <= 127
