"""Principal components of feature maps as colors, and the tool that draws them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmitpn.models.backbones import FastITPN
from mmitpn.models.necks import ITPNPyramid
from mmitpn.utils import config_folder
from mmitpn.visualization import features
from mmitpn.visualization.features import draw_features, extract_features, fit_pca, pca_image

NANO = config_folder() / 'quickstart/fast-itpn-nano_shapes.pth'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / 'tools/analysis/visualize_features.py'
    spec = importlib.util.spec_from_file_location('tool_visualize_features', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def two_regions() -> Tensor:
    """A map of 6 channels whose left and right halves have different features, with little noise."""
    generator = torch.Generator().manual_seed(0)
    maps = 0.05 * torch.randn(6, 10, 12, generator=generator)
    maps[2, :, 6:] += 3
    maps[4, :5] += 1
    return maps


def test_a_component_is_a_color(two_regions: Tensor) -> None:
    """Red is the direction of most variance, green the next; their largest weight is positive, so they are bright."""
    image = pca_image(two_regions)
    assert (image.shape, image.dtype) == ((10, 12, 3), np.uint8)
    red, green = (image[..., channel].astype(float) for channel in (0, 1))
    assert red[:, 6:].min() > 200
    assert red[:, :6].max() < 55
    assert green[:5].min() > 150
    assert green[5:].max() < 105
    assert np.array_equal(image, pca_image(two_regions))
    assert np.abs(image.astype(int) - pca_image(two_regions.half()).astype(int)).max() <= 4


def test_colors_are_robust_to_outliers(two_regions: Tensor) -> None:
    two_regions[2, 0, 0] = 40
    red = pca_image(two_regions)[..., 0].astype(int)
    assert red[1:, 6:].min() - red[1:, :6].max() > 150


def test_one_fit_for_several_maps(two_regions: Tensor) -> None:
    """The same feature has the same color in all maps of one fit; alone, a map has its own colors."""
    left, right = two_regions[:, :, :6], two_regions[:, :, 6:]
    fit = fit_pca([left, right])
    assert np.array_equal(np.concatenate([fit.to_image(left), fit.to_image(right)], axis=1), pca_image(two_regions))
    assert pca_image(right)[..., 0].min() < 55
    assert fit.explained == pytest.approx(1, abs=0.02)
    rows = two_regions.flatten(1).T.double().numpy()
    variances = np.linalg.eigvalsh(np.cov(rows.T))
    assert fit.explained == pytest.approx(variances[-3:].sum() / variances.sum())


def test_what_does_not_vary_is_gray() -> None:
    assert (pca_image(torch.full((8, 3, 4), 7.0)) == 128).all()
    assert (pca_image(torch.randn(8, 1, 1)) == 128).all()
    assert (pca_image(torch.randn(2, 5, 5))[..., 2] == 128).all()  # two channels have two components


@pytest.mark.parametrize(
    ('maps', 'words'),
    [
        ([], 'no feature map'),
        ([torch.zeros(4, 4)], r'shapes \[\(4, 4\)\]; give maps \(C, H, W\)'),
        ([torch.zeros(4, 2, 2), torch.zeros(5, 2, 2)], 'the same C'),
        ([torch.full((4, 2, 2), float('nan'))], 'NaN or infinite'),
    ],
)
def test_refuses_maps(maps: list[Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_pca(maps)


def test_features_are_those_of_the_network() -> None:
    backbone, pyramid = FastITPN.from_pretrained(NANO), ITPNPyramid.from_pretrained(NANO, num_outs=4)
    image = np.random.default_rng(0).integers(0, 255, (37, 50, 3), np.uint8)
    found = extract_features(image, backbone, pyramid)
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        'backbone, stride 4': (48, 10, 13),
        'backbone, stride 8': (96, 5, 7),
        'backbone, stride 16': (192, 3, 4),
        **{f'pyramid, stride {4 << i}': (128, -(-37 // (4 << i)), -(-50 // (4 << i))) for i in range(4)},
    }
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        levels = pyramid(backbone(((torch.tensor(image) - mean) / std).permute(2, 0, 1)[None]))
    assert torch.allclose(found['pyramid, stride 8'], levels[1][0], atol=1e-5)
    with pytest.raises(ValueError, match='no image'):
        draw_features([], 'never.png', backbone=backbone)


def test_tool_reads_images(tool: ModuleType, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new('RGB', (40, 20), 'red').save(tmp_path / 'turned.jpg', exif=exif)
    Image.new('L', (2000, 7), 90).save(tmp_path / 'gray.png')
    assert tool.read_image(tmp_path / 'turned.jpg', None).shape == (40, 20, 3)
    assert tool.read_image(tmp_path / 'turned.jpg', 80).shape == (80, 40, 3)
    assert tool.read_image(tmp_path / 'gray.png', None).shape == (4, 1024, 3)
    (tmp_path / 'broken.jpg').write_bytes((tmp_path / 'turned.jpg').read_bytes()[:500])
    with pytest.raises(ValueError, match=r'broken\.jpg cannot be read as an image'):
        tool.read_image(tmp_path / 'broken.jpg', None)


def test_tool_draws(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    panels = []
    draw = features.draw_image_grid
    monkeypatch.setattr(features, 'draw_image_grid', lambda drawn, **kw: panels.extend(drawn) or draw(drawn, **kw))
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47), np.uint8)
    files = [str(tmp_path / f'{i}.png') for i in range(2)]
    for file in files:
        Image.fromarray(pixels).save(file)
    out = tmp_path / 'new' / 'features.png'
    assert tool.main([*files, '--out', str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    with Image.open(out) as drawn:
        assert drawn.width == 4 * 320
    first, second = panels[:8], panels[8:]
    assert first[0].title == 'image, 47x33'
    assert [one.title.partition(': ')[0] for one in first[1:]] == [
        *(f'backbone, stride {stride}' for stride in (4, 8, 16)),
        *(f'pyramid, stride {stride}' for stride in (4, 8, 16, 32)),
    ]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.image, other.image)
    assert first[5].image.std() > 20
    assert tool.build(tool.parse_args(['a.jpg', '--random', 'tiny']))[1].in_channels == (96, 192, 384)


@pytest.mark.parametrize('num_outs', [3, 5])
def test_each_image_starts_a_row(num_outs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of levels is."""
    drawn = {}
    monkeypatch.setattr(features, 'save_figure', lambda *_: None)
    monkeypatch.setattr(features, 'draw_image_grid', lambda panels, **kw: drawn.update(kw, panels=panels))
    backbone, pyramid = FastITPN.from_pretrained(NANO), ITPNPyramid.from_pretrained(NANO, num_outs=num_outs)
    images = [np.random.default_rng(i).integers(0, 255, (33, 47, 3), np.uint8) for i in range(2)]
    features.draw_features(images, tmp_path / 'a.png', backbone=backbone, pyramid=pyramid)
    columns, titles = drawn['columns'], [one.title.partition(',')[0] for one in drawn['panels']]
    rows = [titles[start : start + columns] for start in range(0, len(titles), columns)]
    assert [row[0] for row in rows] == 2 * ['image', 'pyramid']
    assert [len(list(filter(None, row))) for row in rows] == 2 * [4, num_outs]


def test_tool_takes_a_file_without_a_pyramid(tool: ModuleType, finetuned: dict, tmp_path: Path) -> None:
    torch.save(finetuned, tmp_path / 'classifier.pth')
    backbone, pyramid, words = tool.build(tool.parse_args(['a.jpg', '--weights', str(tmp_path / 'classifier.pth')]))
    assert isinstance(backbone, FastITPN)
    assert pyramid is None
    assert words == 'classifier.pth, which has no pyramid'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nowhere.jpg'], 'no image nowhere.jpg'),
        (['IMAGE', '--weights', 'nowhere.pth'], 'give --weights FILE_OR_NAME, any released file'),
        (['IMAGE', '--weights', 'IMAGE'], 'IMAGE'),
    ],
)
def test_tool_explains(
    tool: ModuleType, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = str(tmp_path / 'image.png')
    Image.new('RGB', (8, 8)).save(image)
    assert tool.main([image if part == 'IMAGE' else part for part in arguments]) == 2
    assert words.replace('IMAGE', image) in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.parse_args([image, '--size', '0'])
