"""docs/recipes.md: every command is parsed on the configs it names; those with an effect of their own run in small."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.visualization import Visualizer
from PIL import Image

from mmitpn.commands import test as testing
from mmitpn.commands import train as training
from mmitpn.datasets import generate_shapes
from mmitpn.engine import setup_environment
from mmitpn.engine.cli import load_config, merge_options, parse_options
from mmitpn.engine.config_utils import resolve_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/recipes.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```(bash|python)\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
NAMES = dict(re.findall(r'^([A-Z]+)=(\S+)', BLOCKS[0][1], re.MULTILINE))
COMMANDS = [
    line.partition('    #')[0].strip()
    for kind, text in BLOCKS[1:]
    if kind == 'bash'
    for line in text.replace('\\\n', ' ').splitlines()
]
CONFIGS = [text for kind, text in BLOCKS if kind == 'python' and '_base_ =' in text]
LOADER = next(text for kind, text in BLOCKS if kind == 'python' and 'class LoadArray' in text)

DetLocalVisualizer = pytest.importorskip('mmdet.visualization').DetLocalVisualizer
SegLocalVisualizer = pytest.importorskip('mmseg.visualization').SegLocalVisualizer


@pytest.fixture(scope='module')
def parse(shell_calls: Callable[[str], list[list[str]]]) -> Callable[[str, dict[str, str]], Any]:
    """A function that gives the parsed arguments of a command, in which bash has expanded the names of configs."""

    def parse_command(command: str, names: dict[str, str]) -> Any:
        assignments = ''.join(f'{name}={value}; ' for name, value in names.items())
        ((_, kind, *arguments),) = shell_calls(f'{assignments}{command}')
        return {'train': training, 'test': testing}[kind].parse_args(arguments)

    return parse_command


read = cache(load_config)


# --- fast: on the configs that the page names ------------------------------------------------------------------------


def test_the_page_has_what_users_look_for() -> None:
    headings = re.findall(r'^###? (.*)$', PAGE, re.MULTILINE)
    for topic in (
        *('bf16', 'memory', 'accumulation', 'Freeze', 'queries', 'neck', 'Image size', 'Channels', 'TensorBoard'),
        *('EMA', 'Early stopping', 'best checkpoint', 'Resume', 'other classes', 'backbone', 'Seed', 'augmentation'),
    ):
        assert any(topic in heading for heading in headings), topic
    assert len(COMMANDS) > 30
    for link in re.findall(r'\]\(([^)#]+)', PAGE):
        assert (ROOT / 'docs' / link).exists(), link


@pytest.mark.parametrize('command', COMMANDS)
def test_options_are_settings_of_the_config(
    command: str, parse: Callable[..., Any], unknown_settings: Callable[..., list[str]]
) -> None:
    args = parse(command.replace('my_config.py', '$DET'), NAMES)
    before = read(args.config)
    cfg = deepcopy(before)
    merge_options(cfg, args.cfg_options)
    assert unknown_settings(before, args.cfg_options) == []
    for key, value in (args.cfg_options or {}).items():
        *parents, name = key.split('.')
        old, new = before, cfg
        for parent in parents:
            old, new = (node[int(parent)] if isinstance(node, list) else node.get(parent, {}) for node in (old, new))
        assert new[name] == value != old.get(name, ''), key


def test_lists_on_the_command_line() -> None:
    (shown,) = re.findall(r'`"(\[\{.*?\}\])"`', PAGE)
    cfg = deepcopy(read(NAMES['DET']))
    merge_options(cfg, parse_options([f'custom_hooks={shown}', 'param_scheduler.0.end=24']))
    assert [dict(one) for one in cfg.custom_hooks] == [{'type': 'EMAHook', 'momentum': 0.001}]
    assert cfg.param_scheduler[0].end == 24


def test_config_blocks_are_settings_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup_environment()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_loader.py').write_text(LOADER)
    assert len(CONFIGS) == 7
    for index, text in enumerate(CONFIGS):
        path = tmp_path / f'block_{index}.py'
        path.write_text(text)
        cfg = Config.fromfile(path)
        base = Config.fromfile(resolve_config(re.search(r'mmitpn::(\S+)\.py', text).group(1)))
        assert cfg.to_dict() != base.to_dict()
        assert cfg.model.type == 'mmitpn.DINO'
        assert set(cfg.model) == set(base.model)
        assert list(cfg.model.neck.in_channels) == list(base.model.neck.in_channels)


# --- slow: in small --------------------------------------------------------------------------------------------------

DATA = """
data = {data!r}
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
backbone, channels = dict(arch='nano'), (48, 96, 192)
neck = dict(in_channels=channels)
"""
COCO = """
for _loader, _split in ((train_dataloader, 'train'), (val_dataloader, 'val')):
    _loader['dataset'] = dict(
        data_root=data + '/coco/', metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring')))
_resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
_annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask={masks})
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'), _annotations, _resize, dict(type='PackDetInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), _resize, *_base_.test_pipeline[2:]]
val_dataloader['dataset']['pipeline'] = test_pipeline
val_evaluator = dict(ann_file=data + '/coco/annotations/instances_val2017.json')
test_dataloader, test_evaluator = val_dataloader, val_evaluator
"""
SMALL = {
    'DET': COCO.format(masks=False)
    + """
_ffn = dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64)))
model = dict(
    num_queries=310, backbone=backbone, neck=neck, encoder=dict(num_layers=1, **_ffn),
    decoder=dict(num_layers=2, **_ffn), bbox_head=dict(num_classes=5), dn_cfg=dict(group_cfg=dict(num_dn_queries=10)))
train_cfg = dict(max_epochs=1)
""",
    'INST': COCO.format(masks=True)
    + """
model = dict(
    backbone=backbone, neck=neck, train_cfg=dict(num_points=100), panoptic_head=dict(
        num_things_classes=5, pixel_decoder=dict(feedforward_channels=64, num_layers=1),
        decoder=dict(num_layers=1, feedforward_channels=64)))
train_cfg = dict(max_iters=1, val_interval=1)
""",
    'SEG': """
train_cfg = dict(max_iters=1, val_interval=1)
for _loader in (train_dataloader, val_dataloader):
    _loader['dataset'] = dict(
        data_root=data + '/ade/ADEChallengeData2016', type='BaseSegDataset', reduce_zero_label=True, metainfo=dict(
            classes=('circle', 'square', 'triangle', 'star', 'ring', 'gradient', 'noise', 'stripes', 'checker')))
train_dataloader['dataset']['pipeline'] = [
    *_base_.train_pipeline[:2], dict(_base_.train_pipeline[2], scale=(384, 96)),
    dict(_base_.train_pipeline[3], crop_size=(96, 96)), *_base_.train_pipeline[4:]]
val_dataloader['dataset']['pipeline'] = [
    _base_.test_pipeline[0], dict(_base_.test_pipeline[1], scale=(384, 96)), *_base_.test_pipeline[2:]]
test_dataloader = val_dataloader
_head = dict(channels=16, num_classes=9, norm_cfg=dict(type='BN'))
model = dict(
    data_preprocessor=dict(size=(96, 96)), backbone=backbone, neck=neck, test_cfg=dict(mode='whole'),
    decode_head=dict(_head, in_channels=[256 + c for c in (*channels, channels[-1])]),
    auxiliary_head=dict(_head, in_channels=256 + channels[-1]))
""",
}
RELEASED = '--pretrained fast-itpn-b'  # a file of B
HEAVY = ('torch.utils.tensorboard', 'wandb', 'mlflow')  # packages that are not installed here


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The configs of the page with a shallow backbone and two generated images, and a checkpoint of the detector."""
    setup_environment()
    root = tmp_path_factory.mktemp('recipes')
    data = generate_shapes(root / 'shapes', 2, 2, seed=1, size=(96, 128))
    names = {name: str(root / f'{name.lower()}.py') for name in SMALL}
    for name, text in SMALL.items():
        base = str(resolve_config(NAMES[name]))
        Path(names[name]).write_text(f'_base_ = {base!r}\n{DATA.format(data=str(data))}\n{text}\n')
    training.train(training.parse_args([names['DET'], '--work-dir', str(root / 'first')]), [])
    return SimpleNamespace(root=root, data=data, names=names, checkpoint=str(root / 'first/epoch_1.pth'))


@pytest.fixture
def run(
    small: SimpleNamespace, parse: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., SimpleNamespace]]:
    """A function that runs a command of the page on the small configs, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    packages = {name: MagicMock() for name in HEAVY}
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)

    def run_command(command: str, *, only_build: bool = False, **options: Any) -> SimpleNamespace:
        forget_visualizers()
        args = parse(
            command.replace('CHECKPOINT', small.checkpoint).replace(RELEASED, f'--pretrained {small.checkpoint}'),
            small.names,
        )
        args.work_dir = args.work_dir or str(tmp_path / 'work')
        args.cfg_options = {**(args.cfg_options or {}), **options} or None
        built, module = {}, testing if ' test ' in command else training
        build_name = 'build_test_runner' if module is testing else 'build_runner'
        build = getattr(module, build_name)

        def build_and_keep(cfg: Config, *rest: Any, **more: Any) -> Any:
            runner, step = build(cfg, *rest, **more)
            built.update(runner=runner, cfg=cfg, before=deepcopy(runner.model.state_dict()))
            if only_build:
                runner.train = runner.test = dict
                if module is training:  # what runner.train() builds first
                    runner._train_loop = runner.build_train_loop(runner._train_loop)
                    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
                    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
                    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
            return runner, step

        with monkeypatch.context() as patch:
            patch.setattr(module, build_name, build_and_keep)
            (testing.test if module is testing else training.train)(args, [])
        logs = sorted(Path(args.work_dir).glob('*/vis_data/scalars.json'))
        lines = [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []
        return SimpleNamespace(**built, lines=lines, work_dir=Path(args.work_dir), packages=packages)

    yield run_command
    forget_visualizers()  # later tests of this process would log into the folder
    shutil.rmtree(tmp_path)  # checkpoints of 100 MB


def forget_visualizers() -> None:
    """Mmengine keeps one for each name in a process."""
    for kind in (Visualizer, DetLocalVisualizer, SegLocalVisualizer):
        kind._instance_dict.clear()


def moved(done: SimpleNamespace, prefix: str) -> bool:
    """Whether a weight below a name changed in training."""
    weights = done.runner.model.state_dict()
    return any(not torch.equal(weights[name], old) for name, old in done.before.items() if name.startswith(prefix))


def trains(done: SimpleNamespace, prefix: str) -> bool:
    """Whether a weight below a name is trained."""
    named = done.runner.model.named_parameters()
    return any(weight.requires_grad for name, weight in named if name.startswith(prefix))


def hook(done: SimpleNamespace, kind: type) -> Any:
    return next(one for one in done.runner.hooks if isinstance(one, kind))


def rates(done: SimpleNamespace, part: str) -> set[float]:
    """Initial learning rates of the weights of a part."""
    model = done.runner.model
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = done.runner.optim_wrapper.param_groups
    return {group['initial_lr'] for group in groups for one in group['params'] if names.get(one, '').startswith(part)}


def check_loggers(done: SimpleNamespace) -> bool:
    added = [type(one).__name__ for one in done.runner.visualizer._vis_backends.values()]
    writers = {
        'TensorboardVisBackend': done.packages['torch.utils.tensorboard'].SummaryWriter.return_value.add_scalar,
        'WandbVisBackend': done.packages['wandb'].log,
        'MLflowVisBackend': done.packages['mlflow'].log_metrics,
    }
    used = [name for name in added if name in writers]
    logged = not done.lines or all('loss' in str(writers[name].mock_calls) for name in used)
    return added[0] == 'LocalVisBackend' and bool(used) and logged


# A part of a command -> whether the run shows its effect. Of the other commands the test above shows that they set what
# the config has.
EFFECTS: dict[str, Callable[[SimpleNamespace], bool]] = {
    '--amp': lambda done: done.cfg.optim_wrapper.type == 'mmitpn.BFloat16OptimWrapper',
    '{backbone,neck,encoder,decoder}.with_cp': lambda done: (
        done.runner.model.backbone.with_cp
        and done.runner.model.neck.with_cp
        and [getattr(done.runner.model, part).num_recomputed for part in ('encoder', 'decoder')] == [1, 2]
    ),
    'panoptic_head.{pixel': lambda done: done.runner.model.panoptic_head.pixel_decoder.encoder.num_recomputed == 1,
    '--auto-scale-lr': lambda done: math.isclose(
        done.cfg.optim_wrapper.optimizer.lr * done.runner.train_dataloader.batch_sampler.batch_size / 16,
        max(rates(done, 'bbox_head')),
    ),
    '--freeze 2': lambda done: not trains(done, 'backbone.stage2') and trains(done, 'backbone.blocks'),
    '--freeze 3': lambda done: not trains(done, 'backbone') and trains(done, 'encoder'),
    'neck_lr_mult=0': lambda done: not moved(done, 'neck'),
    '$DET --queries': lambda done: done.runner.model.num_queries == 300,
    '$INST --queries': lambda done: done.runner.model.panoptic_head.num_queries == 100,
    'CHECKPOINT --cfg-options val_': lambda done: max(done.runner.test_dataloader.dataset[0]['inputs'].shape) == 640,
    '2.scale=': lambda done: (
        tuple(done.runner.model.data_preprocessor.size) == (640, 640)
        and 320 <= max(done.runner.train_dataloader.dataset[0]['inputs'].shape) <= 640
    ),
    'img_size=640': lambda done: done.runner.model.backbone.grid == (40, 40),
    '--log': check_loggers,
    '--ema': lambda done: 'ema_state_dict' in torch.load(done.work_dir / 'epoch_1.pth', weights_only=False),
    '$DET --early-stop': lambda done: hook(done, EarlyStoppingHook).best_score >= 0,
    '$SEG --early-stop': lambda done: hook(done, EarlyStoppingHook).monitor == 'mIoU',
    'save_best': lambda done: list(done.work_dir.glob('best_coco_bbox_mAP_epoch_*.pth')),
    'decay_rate=0.8': lambda done: math.isclose(min(rates(done, 'backbone.patch_embed')), 1e-4 * 0.8**9),
    'lr_mult=0.1': lambda done: math.isclose(max(rates(done, 'backbone')), 1e-5),
    '--resume': lambda done: done.runner._resume is ('CHECKPOINT' in done.command),
    'num_classes=2': lambda done: done.runner.model.bbox_head.num_classes == 2,
    'visualization.{draw': lambda done: list(done.work_dir.glob('*/vis_data/vis_image/*.png')),
    'deterministic=True': lambda _: torch.are_deterministic_algorithms_enabled(),
    '--tta': lambda done: type(done.runner.model).__name__ == 'DetTTAModel',
    '--out predictions.json': lambda _: len(json.loads(Path('predictions.json').read_text())) == 2,
    '--out predictions.pkl': lambda _: Path('predictions.pkl').is_file() and list(Path('drawings').rglob('*.png')),
}
# Those whose effect shows in a run only; the others are built, with optimizer and schedule.
RUN = ('neck_lr_mult', '--log wandb', '--ema', '$DET --early-stop', 'save_best', 'visualization.{', '--tta', '--out')
RUN += ('load_from', '--resume CHECKPOINT')


@pytest.mark.slow
@pytest.mark.parametrize('command', [one for one in COMMANDS if any(part in one for part in EFFECTS)])
def test_commands_run(command: str, run: Callable[..., SimpleNamespace], small: SimpleNamespace) -> None:
    if 'my_config.py' in command:
        pytest.skip('run with its config below')
    options: dict[str, Any] = {}
    if 'num_classes=2' in command:
        options = {f'{part}_dataloader.dataset.metainfo.classes': ('circle', 'star') for part in ('train', 'val')}
        options['allow_class_subset'] = True
    if 'visualization.{' in command:  # the second of two images
        options = {'default_hooks.visualization.interval': 2}
    if '$SEG CHECKPOINT' in command:
        run('mmitpn train $SEG')
        command = command.replace('CHECKPOINT', 'work/iter_1.pth')
    checks = [check for part, check in EFFECTS.items() if part in command]
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        done = run(command, only_build=not any(part in command for part in RUN), **options)
        done.command = command
        for check in checks:
            assert check(done)
        losses = [line['loss'] for line in done.lines if 'loss' in line]
        assert all(map(math.isfinite, losses))
    finally:
        torch.use_deterministic_algorithms(deterministic)


@pytest.mark.slow
@pytest.mark.parametrize('index', range(len(CONFIGS)))
def test_configs_run(index: int, run: Callable[..., SimpleNamespace], small: SimpleNamespace, tmp_path: Path) -> None:
    text = CONFIGS[index]
    text = text.replace('[128, 256, 512]', '[48, 96, 192]').replace('(1333, 800)', '(96, 96)')  # of B, of the small one
    (tmp_path / 'my_config.py').write_text(re.sub("'mmitpn::.*'", repr(small.names['DET']), text))
    options: dict[str, Any] = {}
    if 'my_loader' in text:
        (tmp_path / 'my_loader.py').write_text(LOADER)
        options = write_arrays(small.data / 'coco', tmp_path / 'arrays')
        command = f'PYTHONPATH=. mmitpn train my_config.py {RELEASED}'
        assert command in COMMANDS
    else:
        command = 'mmitpn train my_config.py'
    done = run(command, only_build='my_loader' not in text, **options)
    assert 'my_loader' not in text or [line for line in done.lines if 'coco/bbox_mAP' in line]
    effects = [
        (lambda: done.runner.model.num_queries == 300 and done.cfg.default_hooks.logger.interval == 10),
        (lambda: type(done.runner.model.neck).__name__ == 'FPN'),
        (lambda: max(done.runner.val_dataloader.dataset[0]['inputs'].shape) == 640),
        (lambda: done.runner.model.backbone.patch_embed.proj.weight.shape[1] == 6),
        (lambda: check_loggers(done) and done.cfg.visualizer.vis_backends[1].init_kwargs['project'] == 'shelves'),
        (lambda: hook(done, EMAHook).ema_cfg['gamma'] == 20),
        (lambda: hook(done, EarlyStoppingHook).min_delta == 0.001),
    ]
    assert effects[index]()


def write_arrays(coco: Path, out: Path) -> dict[str, Any]:
    """The dataset with six channels in .npy files, and the options that name it."""
    options: dict[str, Any] = {}
    (out / 'annotations').mkdir(parents=True)
    for part in ('train', 'val'):
        content = json.loads((coco / f'annotations/instances_{part}2017.json').read_text())
        (out / f'{part}2017').mkdir()
        for entry in content['images']:
            pixels = np.asarray(Image.open(coco / f'{part}2017' / entry['file_name']).convert('RGB'))
            entry['file_name'] = f'{Path(entry["file_name"]).stem}.npy'
            np.save(out / f'{part}2017' / entry['file_name'], np.concatenate([pixels, 255 - pixels], axis=2))
        (out / f'annotations/instances_{part}2017.json').write_text(json.dumps(content))
        options[f'{part}_dataloader.dataset.data_root'] = f'{out}/'
    return options | {'val_evaluator.ann_file': f'{out}/annotations/instances_val2017.json'}
