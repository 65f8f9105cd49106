"""Two classes, one class, and nothing to learn: what the checks say, and that following each advice trains."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from mmitpn.config_check import check_config
from mmitpn.config_check.semantic import check_semantic_config
from mmitpn.engine.cli import DictAction

pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'data' / 'check_semantic.py'
CONFIG = """
_base_ = {base!r}
names = {names}
metainfo = dict(classes=names, palette=[[0, 0, 60], [40, 90, 60], [9, 9, 9]][:len(names)])
loss = dict(type='CrossEntropyLoss', _delete_=True, **{loss})
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(init_cfg=None), neck=dict(init_cfg=None),
    decode_head=dict(num_classes=len(names), dropout_ratio=0.0, loss_decode=loss, **{head}),
    auxiliary_head=dict(num_classes=len(names), dropout_ratio=0.0, loss_decode=loss, **{head}),
)
dataset = dict(
    data_root={root!r}, metainfo=dict(_delete_=True, **metainfo), reduce_zero_label={reduce}, pipeline=pipeline,
    seg_map_suffix={suffix!r})
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    data_prefix=dict(_delete_=True, img_path='images', seg_map_path='maps'), **dataset))
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    data_prefix=dict(_delete_=True, img_path='images', seg_map_path='maps'), **dataset))
test_dataloader = val_dataloader
"""


def write(root: Path, values: tuple[int, ...], *, mode: str = 'L', suffix: str = '.png') -> None:
    """Four images: the second value is a square that is bright in the image, further values are rows below it."""
    for name in ('images', 'maps'):
        (root / name).mkdir()
    for index in range(4):
        image, labels = np.full((64, 64, 3), 40, np.uint8), np.full((64, 64), values[0], np.uint8)
        image[16:48, 16:48], labels[16:48, 16:48] = 220, values[1]
        for row, value in enumerate(values[2:]):
            labels[50 + row] = value
        Image.fromarray(image).save(root / 'images' / f'{index}.jpg')
        Image.fromarray(labels).convert(mode).save(root / 'maps' / f'{index}{suffix}')


def config(root: Path, names: tuple[str, ...], *, reduce=False, loss=None, head=None, suffix='.png') -> Path:
    base = str(ROOT / 'configs' / 'quickstart' / 'upernet_fast-itpn-nano_shapes.py')
    file = root / 'config.py'
    file.write_text(
        CONFIG.format(
            base=base, root=str(root), names=names, reduce=reduce, loss=loss or {}, head=head or {}, suffix=suffix
        )
    )
    return file


def advised(text: str) -> dict:
    """The options after --cfg-options in a message, parsed as a shell and the tools would."""
    words = shlex.split(text.partition('--cfg-options ')[2])
    pairs = [word.partition('=') for word in words if re.match(r'[\w.]+=', word)]
    return {key: DictAction._parse_iterable(value) for key, _, value in pairs}


def refused(cfg: Config, *, splits=('train', 'val')) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - each caller looks at the text
        check_config(cfg, splits=splits)
    return str(error.value)


def train(cfg: Config, *, steps: int = 4) -> tuple[list[float], dict[str, float]]:
    """Train on the first batch and evaluate it: losses, and IoU by class in percent."""
    assert check_config(cfg) == []
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        evaluation = Runner.build_dataloader(cfg.val_dataloader, seed=0)
        from mmseg.evaluation import IoUMetric
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = next(iter(loader))
    labels = torch.stack([sample.gt_sem_seg.data for sample in batch['data_samples']])
    assert labels.unique().tolist() == [0, 1], 'both classes are in the batch'
    losses = []
    for _ in range(steps):
        total, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    model.eval()
    metric = IoUMetric()
    metric.dataset_meta = evaluation.dataset.metainfo
    with torch.no_grad():
        for data in evaluation:
            outputs = model.val_step(data)
            metric.process(data, [sample.to_dict() for sample in outputs])
    areas = sum(result[3] for result in metric.results)
    return losses, dict(zip(evaluation.dataset.metainfo['classes'], areas.tolist(), strict=True))


def fix(file: Path, out: Path, capsys, *options: str) -> str:
    spec = importlib.util.spec_from_file_location('tool_check_semantic', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    status = tool.main([str(file), '--fix', str(out), *options])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return shown.out


def assert_trains(cfg: Config, foreground: int = 32 * 32 * 4) -> None:
    """The loss falls, and the evaluation sees both classes with the pixels that they have."""
    losses, areas = train(cfg)
    assert losses[0] > 0
    assert 0 < losses[-1] < 0.9 * losses[0]
    assert list(areas.values()) == [64 * 64 * 4 - foreground, foreground]


@pytest.mark.parametrize(
    ('values', 'mode', 'suffix', 'names', 'settings'),
    [
        ((0, 255), 'L', '.png', ('bg', 'fg'), {}),
        pytest.param((0, 255), 'L', '.png', ('bg', 'fg'), {'reduce': True}, marks=pytest.mark.slow),
        ((0, 255), 'L', '.png', ('traffic light',), {}),
        pytest.param((0, 255), 'L', '.png', ('fg',), {'reduce': True}, marks=pytest.mark.slow),
        pytest.param(
            (0, 255),
            'L',
            '.png',
            ('bg', 'fg'),
            {'loss': {'use_sigmoid': True}, 'head': {'out_channels': 1}},
            marks=pytest.mark.slow,
        ),
        pytest.param((0, 255), 'RGB', '.png', ('bg', 'fg'), {}, marks=pytest.mark.slow),
        pytest.param((0, 255), 'RGBA', '.png', ('bg', 'fg'), {}, marks=pytest.mark.slow),
        pytest.param((0, 128), 'L', '.png', ('bg', 'fg'), {}, marks=pytest.mark.slow),
        pytest.param((0, 255), 'L', '.jpg', ('bg', 'fg'), {}, marks=pytest.mark.slow),
    ],
)
def test_maps_of_other_values_are_named_and_fixed(tmp_path, capsys, values, mode, suffix, names, settings):
    write(tmp_path, values, mode=mode, suffix=suffix)
    file = config(tmp_path, names, suffix=suffix, **settings)
    text = refused(Config.fromfile(file))
    assert 'tools/data/check_semantic.py CONFIG --fix OUT' in text
    out = tmp_path / 'new maps'
    shown = fix(file, out, capsys)
    assert '8 label maps written' in shown or '4 label maps written' in shown
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(advised(shown))
    written = np.asarray(Image.open(out / 'train' / '0.png'))
    assert np.unique(written).tolist() == [0, 1]
    assert int(written.sum()) == 32 * 32
    assert cfg.train_dataloader.dataset.metainfo.classes[-1] == names[-1]
    assert cfg.test_dataloader.dataset.data_prefix == cfg.val_dataloader.dataset.data_prefix
    assert_trains(cfg)


@pytest.mark.parametrize('splits', [('train',), ('val',), ('test',)])
def test_black_and_white_maps_are_named_in_every_split(tmp_path, splits):
    write(tmp_path, (0, 255))
    text = refused(Config.fromfile(config(tmp_path, ('bg', 'fg'))), splits=splits)
    assert 'hold the values 0 and 255 only, and 255 is ignored' in text


def test_255_around_two_classes_stays_ignored(tmp_path):
    write(tmp_path, (0, 1, 255))
    cfg = Config.fromfile(config(tmp_path, ('bg', 'fg')))
    assert check_config(cfg) == []
    (summary, _) = check_semantic_config(cfg)
    assert (summary.ignored, summary.pixels.tolist()) == (4 * 64, [4 * (64 * 63 - 1024), 4 * 1024])


@pytest.mark.parametrize(
    ('names', 'settings', 'reason'),
    [
        pytest.param(
            ('fg',),
            {},
            'the softmax over the single channel of model.decode_head is always 1 and its loss 0',
            marks=pytest.mark.slow,
        ),
        (('fg',), {'reduce': True}, 'the softmax over the single channel of model.decode_head'),
        pytest.param(
            ('fg',), {'head': {'out_channels': 1}}, 'the softmax over the single channel', marks=pytest.mark.slow
        ),
        pytest.param(
            ('fg',), {'loss': {'class_weight': [2.0]}}, 'the softmax over the single channel', marks=pytest.mark.slow
        ),
        (('fg',), {'loss': {'use_sigmoid': True}}, 'IoUMetric counts all pixels as one class'),
        pytest.param(('traffic light',), {}, 'the softmax over the single channel', marks=pytest.mark.slow),
        (("dog's nose",), {}, 'the softmax over the single channel'),
    ],
)
def test_one_class_gets_a_background(tmp_path, names, settings, reason):
    write(tmp_path, (0, 1))
    file = config(tmp_path, names, **settings)
    text = refused(Config.fromfile(file))
    assert reason in text
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(advised(text))
    assert cfg.train_dataloader.dataset.metainfo.classes == ('background', *names)
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset
    assert_trains(cfg)


@pytest.mark.slow
def test_one_class_beside_two_channels_is_told_the_same(tmp_path):
    write(tmp_path, (0, 1))
    file = config(tmp_path, ('fg',))
    cfg = Config.fromfile(file)
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 2
    text = refused(cfg)
    assert 'model.decode_head.num_classes is 2' in text
    cfg.merge_from_dict(advised(text))
    assert_trains(cfg)


@pytest.mark.slow
def test_softmax_over_one_channel_for_two_classes(tmp_path):
    write(tmp_path, (0, 1))
    cfg = Config.fromfile(config(tmp_path, ('bg', 'fg'), head={'out_channels': 1}))
    for key in ('decode_head', 'auxiliary_head'):
        text = refused(cfg)
        assert f'model.{key} has one channel, over which the softmax of CrossEntropyLoss is always 1' in text
        cfg.merge_from_dict({re.search(r'set (\S+)=True', text).group(1): True})
    assert_trains(cfg)


@pytest.mark.slow
def test_weights_of_other_classes(tmp_path):
    write(tmp_path, (0, 1))
    cfg = Config.fromfile(config(tmp_path, ('bg', 'fg'), loss={'class_weight': [2.0] * 5 + [0.5] * 4}))
    for key in ('decode_head', 'auxiliary_head'):
        assert f'model.{key}.loss_decode.class_weight has 9 numbers, but model.{key} has 2 channels' in refused(cfg)
        cfg.model[key].loss_decode.class_weight = None
    assert_trains(cfg)


def test_a_single_sigmoid_class_without_a_metric_trains(tmp_path):
    write(tmp_path, (0, 1))
    cfg = Config.fromfile(config(tmp_path, ('fg',), loss={'use_sigmoid': True}))
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'] = None
    assert check_config(cfg, splits=['train']) == []
    (summary,) = check_semantic_config(cfg, splits=['train'])
    assert (summary.classes, summary.pixels.tolist()) == (('not fg', 'fg'), [4 * (64 * 64 - 1024), 4 * 1024])


@pytest.mark.parametrize(
    ('values', 'reduce', 'message'),
    [
        ((0, 0), True, r'every pixel .* is ignored \(the files hold 0\).*reduce_zero_label=True .* set it to False'),
        ((0, 1), True, r"every pixel .* is 'bg' or ignored \(the files hold 0, 1\).*set it to False"),
        ((255, 255), False, r'every pixel .* is ignored \(the files hold 255\)'),
        ((1, 255), False, r"every pixel .* is 'fg' or ignored .*--fix OUT"),
    ],
)
def test_nothing_left_to_learn(tmp_path, values, reduce, message):
    write(tmp_path, values)
    cfg = Config.fromfile(config(tmp_path, ('bg', 'fg'), reduce=reduce))
    assert re.search(message, refused(cfg))
    if 'set it to False' in message and values == (0, 1):
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].dataset.reduce_zero_label = False
        assert_trains(cfg)


def test_as_many_values_as_classes(tmp_path, capsys):
    write(tmp_path, (0, 127, 255))
    file = config(tmp_path, ('sky', 'sea', 'land'))
    assert '--fix OUT writes maps with the labels 0 to 2' in refused(Config.fromfile(file))
    shown = fix(file, tmp_path / 'out', capsys)
    assert 'values: 0 -> 0, 127 -> 1, 255 -> 2' in shown
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(advised(shown))
    assert check_config(cfg) == []
    (summary, _) = check_semantic_config(cfg)
    assert summary.pixels.tolist() == [4 * (64 * 63 - 1024), 4 * 1024, 4 * 64]


def test_fix_does_not_guess_nor_overwrite(tmp_path, capsys):
    write(tmp_path, (0, 7, 100, 255))
    file = config(tmp_path, ('sky', 'sea'))
    spec = importlib.util.spec_from_file_location('tool_check_semantic', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(file), '--fix', str(tmp_path / 'out')]) == 1
    assert 'hold 4 values for 2 classes (0, 7, 100, 255), which can be seen in several ways' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert tool.main([str(file), '--fix', str(tmp_path / 'maps')]) == 1
    assert 'is there already; name a new folder' in capsys.readouterr().err


def test_fix_turns_maps_of_stored_images(tmp_path, capsys):
    write(tmp_path, (0, 1, 255))
    for path in (tmp_path / 'images').iterdir():
        image = Image.open(path).crop((0, 0, 64, 60))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    for path in (tmp_path / 'maps').iterdir():
        Image.open(path).crop((0, 0, 64, 60)).save(path)
    file = config(tmp_path, ('bg', 'fg'))
    assert 'made for images as they are stored' in refused(Config.fromfile(file))
    shown = fix(file, tmp_path / 'out', capsys)
    assert '4 maps were turned' in shown
    cfg = Config.fromfile(file)
    cfg.merge_from_dict(advised(shown))
    assert check_config(cfg) == []
    before, after = (np.asarray(Image.open(tmp_path / name / '0.png')) for name in ('maps', 'out/train'))
    assert np.array_equal(after, np.rot90(before, -1))
