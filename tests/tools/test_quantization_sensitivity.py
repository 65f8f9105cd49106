"""The comparison of predictions that tells which parts of a network lose accuracy in int8."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mmitpn.apis.results import Result

pytest.importorskip('mmdet')


@pytest.fixture(scope='module')
def tool():
    path = Path(__file__).parents[2] / 'tools/analysis/quantization_sensitivity.py'
    spec = importlib.util.spec_from_file_location('tool_quantization_sensitivity', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_result(**values):
    values = {name: np.asarray(value) for name, value in values.items()}
    return Result(name='x.jpg', image=np.zeros((4, 4, 3), np.uint8), classes=('a', 'b'), values=values)


def detections(boxes, scores, labels):
    return make_result(boxes=np.array(boxes, np.float32), scores=np.array(scores, np.float32), labels=np.array(labels))


def test_change_of_objects(tool):
    one = detections([[0, 0, 10, 10]], [0.8], [0])
    assert tool.change_of(one, one) == pytest.approx(0)
    lower = detections([[0, 0, 10, 10]], [0.6], [0])
    assert tool.change_of(lower, one) == pytest.approx(0.2, abs=1e-6)
    half = detections([[0, 0, 10, 5]], [0.8], [0])
    assert tool.change_of(half, one) == pytest.approx(0.5, abs=1e-6)
    other_class = detections([[0, 0, 10, 10]], [0.8], [1])
    assert tool.change_of(other_class, one) == pytest.approx(1)
    more = detections([[0, 0, 10, 10], [20, 20, 30, 30]], [0.8, 0.5], [0, 0])
    assert tool.change_of(more, one) == pytest.approx(1 / 3, abs=1e-6)  # one of three objects of both has no partner
    none = detections(np.zeros((0, 4)), [], [])
    assert tool.change_of(none, one) == pytest.approx(1)
    assert tool.change_of(none, none) is None


def test_change_of_label_maps_and_classes(tool):
    first, second = np.zeros((4, 4), int), np.zeros((4, 4), int)
    second[0] = 1
    assert tool.change_of(make_result(semantic=first), make_result(semantic=second)) == pytest.approx(0.25)
    found, expected = (make_result(probabilities=np.array(one)) for one in ([0.9, 0.1], [0.6, 0.4]))
    assert tool.change_of(found, expected) == pytest.approx(0.3)


def test_parts_of_a_network(tool):
    parts = {
        '/backbone/blocks.3/attn/proj/MatMul': '/backbone/blocks.3/attn',
        '/backbone/patch_embed/proj/Conv/WithoutBiases': '/backbone/patch_embed',
        '/decode_head/conv_seg/Conv': '/decode_head/conv_seg',
        '/MatMul_7': 'outside of modules',
    }
    assert {name: tool.part_of(name) for name in parts} == parts


def test_times_are_measured_with_the_threads_of_the_command(tool, monkeypatch):
    opened = []

    class Session:
        def run(self, inputs):
            assert inputs == {'images': 1}

    monkeypatch.setattr(tool, 'load_session', lambda path, threads: opened.append((path, threads)) or Session())
    assert tool.speed_ratio('a.onnx', 'b.onnx', {'images': 1}, threads=1, rounds=2) > 0
    assert opened == [('a.onnx', 1), ('b.onnx', 1)]
