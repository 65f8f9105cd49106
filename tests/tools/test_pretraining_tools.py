from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('tool', ROOT / 'tools/analysis/visualize_reconstruction.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image_file(tmp_path):
    file = tmp_path / 'one.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(file)
    return file


def config(form: str, tmp_path: Path, **more) -> Path:
    model = {
        'type': 'mmitpn.ITPNPretrain',
        'form': form,
        'mask_ratio': 0.75,
        'data_preprocessor': {'mean': [123.0] * 3, 'std': [58.0] * 3, 'bgr_to_rgb': True},
        'backbone': {'type': 'mmitpn.FastITPN', 'arch': 'nano', 'img_size': 64},
        'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'out_channels': 32, 'num_outs': 3},
        **more,
    }
    file = tmp_path / f'{form}.py'
    file.write_text(f"default_scope = 'mmpretrain'\nmodel = {model!r}\n")
    return file


@pytest.mark.parametrize(
    ('form', 'columns'), [('pixel', ['pixels']), ('mfm', ['pixels', 4, 8, 16]), ('fast', [16]), ('hog', [16])]
)
def test_draws_pixels_and_distances(form, columns, tool, image_file, tmp_path, monkeypatch):
    drawn = []
    draw = tool.draw_reconstructions
    monkeypatch.setattr(
        tool, 'draw_reconstructions', lambda found, *a, **k: drawn.append(found) or draw(found, *a, **k)
    )
    more = {'teacher': 'random'} if form == 'fast' else {}
    out = tmp_path / 'sheet.png'
    config_file = config(form, tmp_path, **more)
    assert tool.main([str(image_file), str(image_file), '--config', str(config_file), '--out', str(out)]) == 0
    one = drawn[0][0]
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert('RGB'))
    drawn_colors = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(drawn_colors) > 1000  # the image is of noise
    assert one.image.shape == (64, 64, 3)
    assert one.mask.mean() == 0.75
    assert (one.pixels is not None) == ('pixels' in columns)
    assert [values.shape[0] for values in one.distances.values()] == [64 // c for c in columns if c != 'pixels']
    if one.pixels is not None:  # what is not masked is the image itself
        seen = ~one.mask
        assert np.abs(one.pixels[seen].astype(int) - one.image[seen]).max() <= 1


def test_mistakes(tool, image_file, tmp_path, capsys):
    file = config('pixel', tmp_path)
    assert tool.main([str(tmp_path / 'gone.png'), '--config', str(file)]) == 2
    assert 'no image' in capsys.readouterr().err
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmpretrain'\nmodel = {'type': 'mmitpn.FastITPN', 'arch': 'nano'}\n")
    assert tool.main([str(image_file), '--config', str(other)]) == 2
    assert 'give a config of configs/pretrain' in capsys.readouterr().err


@pytest.mark.slow
def test_cost_of_the_forms(capsys):
    spec = importlib.util.spec_from_file_location('cost', ROOT / 'tools/analysis/pretraining_cost.py')
    cost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cost)
    forms = ['fast', 'mfm', 'hog', 'clip', 'pixel']
    arguments = ['--arch', 'nano', '--size', '64', '--batch', '1', '--seconds', '0', '--rounds', '1', '--form', *forms]
    assert cost.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f'form {form} ' in shown for form in forms)
    assert shown.count('alone, not masked') == 2
