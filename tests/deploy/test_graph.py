"""The modules that are exported: what is exchanged in them, and which models have one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmitpn.deploy.exported_model import windows
from mmitpn.deploy.graph import MatrixPool2d, build_graph, exchanged_for_export


@pytest.mark.parametrize('output_size', [1, 2, 3, 6, (4, 7), (None, 3)])
@pytest.mark.parametrize('size', [(6, 6), (13, 9), (64, 33), (2, 3)])
def test_pooling_by_matrices_is_adaptive_pooling(output_size, size):
    x = torch.randn(2, 3, *size)
    expected = nn.AdaptiveAvgPool2d(output_size)(x)
    torch.testing.assert_close(MatrixPool2d(output_size)(x), expected)


def test_the_model_is_as_before():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 3, 1))
    graph = build_graph(model, features=True)
    with exchanged_for_export(graph, dynamic=True, grid_sample='native'):
        assert isinstance(model[0], MatrixPool2d)
    assert type(model[0]) is nn.AdaptiveAvgPool2d
    with exchanged_for_export(graph, dynamic=False, grid_sample='native'):
        assert type(model[0]) is nn.AdaptiveAvgPool2d


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r'Linear cannot be exported; supported: mmitpn.DINO, .* features of any'):
        build_graph(nn.Linear(2, 2))


def test_windows_are_those_of_mmseg():
    slide = {'crop_size': [4, 5], 'stride': [3, 4]}
    found = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in windows((8, 10), slide)]
    assert found == [(r, r + 4, c, c + 5) for r in (0, 3, 4) for c in (0, 4, 5)]
    assert windows((3, 4), slide) == [(slice(0, 3), slice(0, 4))]
