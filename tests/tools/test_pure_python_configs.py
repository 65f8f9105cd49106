"""Pure Python configs, where a type is a class: every option and tool takes them, and what is written is readable."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.commands import swap as swap_command
from mmitpn.commands import test as test_command
from mmitpn.commands import train
from mmitpn.datasets import generate_shapes
from mmitpn.engine import amp, enable_exact_resume, use_atomic_checkpoints
from mmitpn.engine.config_utils import keep_readable
from mmitpn.engine.pretrained import use_pretrained

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host)

TOOLS = Path(__file__).parents[2] / 'tools'
SHARED = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch.optim import AdamW

from mmitpn import FastITPN, ITPNPyramid, LayerDecayOptimWrapperConstructor

optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4, weight_decay=0.05),
    constructor=LayerDecayOptimWrapperConstructor, paramwise_cfg=dict(decay_rate=0.9))
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
"""
DETECTION = """
from mmengine.config import read_base

with read_base():
    from .shared import *

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import DetDataPreprocessor, FocalLoss, FPN, L1Loss, ResNet, RetinaHead, RetinaNet
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from torch import nn

default_scope = 'mmdet'
data_root = {root!r} + '/coco/'
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True), dict(type=Resize, scale=(128, 128)),
    dict(type=PackDetInputs, meta_keys=keys)]
meta = dict(classes=('circle', 'square', 'triangle', 'star', 'ring'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoDataset, data_root=data_root, metainfo=meta, ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'), pipeline=pipeline))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root=data_root, metainfo=meta, ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'), test_mode=True, pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file=data_root + 'annotations/instances_val2017.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=10)
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1), logger=dict(type=LoggerHook, interval=1))
custom_hooks = [dict(type=EMAHook, momentum=0.01)]
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_size_divisor=32),
    {body},
    bbox_head=dict(
        type=RetinaHead, num_classes=5, in_channels=256, stacked_convs=1, feat_channels=32,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True), loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
"""
OURS = """backbone=dict(type=FastITPN, arch='nano'),
    neck=dict(type=ITPNPyramid, in_channels=(48, 96, 192), start_level=1, num_outs=5)"""
RESNET = """backbone=dict(type=ResNet, depth=18, norm_cfg=dict(type=nn.BatchNorm2d)),
    neck=dict(
        type=FPN, in_channels=[64, 128, 256, 512], out_channels=256, start_level=1, add_extra_convs='on_input',
        num_outs=5)"""
SEGMENTATION = """
from mmengine.config import read_base

with read_base():
    from .shared import *

from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, Resize
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, SegDataPreProcessor
from torch import nn

default_scope = 'mmseg'
meta = dict(
    classes=('circle', 'square', 'triangle', 'star', 'ring', 'gradient', 'noise', 'stripes', 'checker'),
    palette=[[20 * i, 0, 0] for i in range(9)])
pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=Resize, scale=(64, 64), keep_ratio=False),
    dict(type=PackSegInputs)]
test_pipeline = [
    dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 64), keep_ratio=False), dict(type=LoadAnnotations),
    dict(type=PackSegInputs)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=BaseSegDataset, data_root={root!r} + '/ade/ADEChallengeData2016', metainfo=meta, reduce_zero_label=True,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'), pipeline=pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=BaseSegDataset, data_root={root!r} + '/ade/ADEChallengeData2016', metainfo=meta, reduce_zero_label=True,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type=IterBasedTrainLoop, max_iters=1, val_interval=10)
default_hooks = dict(checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=1))
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        size=(64, 64), pad_val=0, seg_pad_val=255),
    backbone=dict(type=FastITPN, arch='nano'),
    neck=dict(type=ITPNPyramid, in_channels=(48, 96, 192), num_outs=4),
    decode_head=dict(
        type=FCNHead, in_channels=256, in_index=2, channels=16, num_convs=1, num_classes=9,
        norm_cfg=dict(type=nn.BatchNorm2d), loss_decode=dict(type=CrossEntropyLoss)),
    test_cfg=dict(mode='whole'))
"""
CLASSIFICATION = """
from mmengine.config import read_base

with read_base():
    from .shared import *

import torch.nn as nn
from mmpretrain.datasets import ImageNet, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ImageClassifier
from mmpretrain.models.losses import CrossEntropyLoss

from mmitpn.models.heads import MeanPoolClsHead

default_scope = 'mmpretrain'
meta = dict(classes=('n0', 'n1'))
pipeline = [dict(type=LoadImageFromFile), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=ImageNet, data_root={root!r} + '/folders', split='train', metainfo=meta, pipeline=pipeline))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=ImageNet, data_root={root!r} + '/folders', split='val', metainfo=meta, pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=10)
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
model = dict(
    type=ImageClassifier,
    backbone=dict(type=FastITPN, arch='nano', out_indices=(2,), final_norm=False),
    head=dict(type=MeanPoolClsHead, num_classes=2, in_channels=192, loss=dict(type=CrossEntropyLoss)))
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True)
"""
TASKS = {'detection': DETECTION, 'segmentation': SEGMENTATION, 'classification': CLASSIFICATION}
METRICS = {'detection': 'coco/bbox_mAP', 'segmentation': 'mIoU', 'classification': 'accuracy/top1'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """The configs, a few generated images in three layouts, and weights for backbone and pyramid."""
    folder = tmp_path_factory.mktemp('pure_python')
    root = generate_shapes(folder / 'shapes', 4, 2, size=(64, 96))
    for split in ('train', 'val'):
        for label in range(2):
            (root / 'folders' / split / f'n{label}').mkdir(parents=True)
            Image.new('RGB', (64, 64), (60 * label,) * 3).save(root / 'folders' / split / f'n{label}' / 'a.png')
    (folder / 'shared.py').write_text(SHARED)
    for name, text in TASKS.items():
        (folder / f'{name}.py').write_text(text.replace('{root!r}', repr(str(root))).replace('{body}', OURS))
    resnet = DETECTION.replace('{root!r}', repr(str(root))).replace('{body}', RESNET)
    (folder / 'resnet.py').write_text(resnet)
    (folder / 'with-dashes').mkdir()
    (folder / 'with-dashes' / 'resnet-18.py').write_text(resnet.replace('from .shared', 'from ..shared'))
    backbone = FastITPN('nano')
    parts = {'backbone': backbone, 'neck': ITPNPyramid(backbone.out_channels)}
    state = {f'{part}.{name}': value for part, module in parts.items() for name, value in module.state_dict().items()}
    torch.save({'state_dict': state}, folder / 'weights.pth')
    return folder


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def structure(model: torch.nn.Module) -> tuple[dict[str, type], dict[str, torch.Size]]:
    """Classes of the modules and shapes of the weights, by name."""
    modules = {name: type(module) for name, module in model.named_modules()}
    return modules, {name: value.shape for name, value in model.state_dict().items()}


@pytest.fixture(params=list(TASKS))
def task(request) -> str:
    return request.param


def test_the_configs_are_lazy(folder, task):
    cfg = Config.fromfile(folder / f'{task}.py')
    assert cfg.model.backbone.type is FastITPN
    assert isinstance(build(cfg).backbone, FastITPN)


def test_pretrained_reaches_backbone_and_pyramid(folder, task):
    cfg = Config.fromfile(folder / f'{task}.py')
    use_pretrained(cfg, str(folder / 'weights.pth'))
    expected = {'type': 'Pretrained', 'checkpoint': str(folder / 'weights.pth')}
    assert [cfg.model[part].init_cfg for part in ('backbone', 'neck') if part in cfg.model] == (
        [expected] if task == 'classification' else [expected, expected]
    )
    model = build(cfg)
    model.init_weights()
    stored = torch.load(folder / 'weights.pth', weights_only=True)['state_dict']
    assert torch.equal(model.backbone.merge1.reduction.weight, stored['backbone.merge1.reduction.weight'])


def test_a_class_derived_from_ours_takes_pretrained_weights(folder):
    class Derived(FastITPN):
        pass

    cfg = Config({'model': {'backbone': {'type': Derived}, 'neck': {'type': torch.nn.Identity}}})
    use_pretrained(cfg, __file__)
    assert cfg.model.backbone.init_cfg.checkpoint == __file__
    assert 'init_cfg' not in cfg.model.neck
    with pytest.raises(ValueError, match=r"\['Identity', None\]"):
        use_pretrained(Config({'model': {'backbone': {'type': torch.nn.Identity}}}), 'w.pth')


def test_the_class_of_pretrained_weights_is_ours_too(folder):
    from mmengine.model import PretrainedInit

    model = FastITPN('nano', init_cfg={'type': PretrainedInit, 'checkpoint': str(folder / 'weights.pth')})
    model.init_weights()
    stored = torch.load(folder / 'weights.pth', weights_only=True)['state_dict']
    assert torch.equal(model.merge1.reduction.weight, stored['backbone.merge1.reduction.weight'])


@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper', 'ApexOptimWrapper'])
def test_mixed_precision_of_a_class(kind, monkeypatch):
    import mmengine.optim

    import mmitpn.engine

    cls = getattr(mmitpn.engine, kind, None) or getattr(mmengine.optim, kind)
    for device, expected in (('cpu', 'mmitpn.BFloat16OptimWrapper'), ('cuda', 'AmpOptimWrapper')):
        monkeypatch.setattr(amp, 'get_device', lambda device=device: device)
        cfg = Config({'optim_wrapper': {'type': cls}})
        if kind == 'ApexOptimWrapper':
            with pytest.raises(ValueError, match=r"optim_wrapper.type='ApexOptimWrapper'; allowed: OptimWrapper"):
                train.apply_amp(cfg)
        else:
            train.apply_amp(cfg)
            assert cfg.optim_wrapper.type == (expected if kind == 'OptimWrapper' else cls)


def test_samplers_loops_and_hooks_are_made_exact(folder):
    cfg = Config.fromfile(folder / 'detection.py')
    enable_exact_resume(cfg)
    loader = cfg.train_dataloader
    assert (loader.sampler.type, loader.batch_sampler.type) == ('mmitpn.SeededSampler', 'mmitpn.SkippingBatchSampler')
    assert (cfg.train_cfg.type, loader.dataset.type) == ('mmitpn.ResumableEpochLoop', 'mmitpn.SeededDataset')
    assert cfg.default_hooks.checkpoint.type == 'mmitpn.AtomicCheckpointHook'
    before = cfg.pretty_text
    enable_exact_resume(cfg)
    assert cfg.pretty_text == before


def test_hooks_that_the_config_has_are_not_added_again():
    from mmitpn.engine import SeedStepHook

    cfg = Config({'custom_hooks': [{'type': SeedStepHook}]})
    enable_exact_resume(cfg)
    names = [getattr(hook.type, '__name__', hook.type) for hook in cfg.custom_hooks]
    assert names.count('SeedStepHook') == 1
    assert 'mmitpn.SeedStepHook' not in names


def test_what_was_built_is_written_as_an_import(folder, tmp_path):
    """A class that was taken out of a config and put back is a bare name in the text that mmengine writes."""
    from mmengine.dataset import pseudo_collate

    cfg = Config.fromfile(folder / 'detection.py')
    cfg.model = ConfigDict(**cfg.model)  # looked at: its type is a class now
    cfg.train_dataloader.collate_fn = {'type': pseudo_collate}
    cfg.custom_hooks = [dict(hook) for hook in cfg.custom_hooks]
    keep_readable(cfg)
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.model.type.endswith('RetinaNet')
    assert again.train_dataloader.collate_fn.type.endswith('pseudo_collate')
    assert again.custom_hooks[0].type.endswith('EMAHook')
    assert cfg.train_dataloader.collate_fn.type is pseudo_collate
    assert structure(build(again)) == structure(build(cfg))


@pytest.mark.parametrize(
    'task', ['detection', *(pytest.param(name, marks=pytest.mark.slow) for name in list(TASKS)[1:])]
)
def test_a_dumped_config_builds_the_same_runner(folder, task, tmp_path):
    cfg = Config.fromfile(folder / f'{task}.py')
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    use_atomic_checkpoints(cfg)
    enable_exact_resume(cfg)
    keep_readable(cfg)
    cfg.experiment_name = f'{task}_lazy'
    runner = Runner.from_cfg(cfg)
    again = Config.fromfile(tmp_path / f'{task}.py')
    again.experiment_name = f'{task}_dumped'
    other = Runner.from_cfg(again)
    assert [type(hook) for hook in runner.hooks] == [type(hook) for hook in other.hooks]
    assert structure(runner.model) == structure(other.model)
    datasets = [one.build_dataloader(one._train_dataloader).dataset for one in (runner, other)]
    assert [type(one.dataset) for one in datasets] == [type(datasets[0].dataset)] * 2
    assert len(datasets[0]) == len(datasets[1])


@pytest.mark.slow
def test_a_training_run_and_its_evaluation(folder, task, tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    options = ['--amp', '--auto-scale-lr', '--pretrained', str(folder / 'weights.pth'), '--work-dir', str(tmp_path)]
    assert train.main([str(folder / f'{task}.py'), *options]) == 0
    dumped = Config.fromfile(tmp_path / f'{task}.py')
    assert dumped.auto_scale_lr.enable
    assert dumped.optim_wrapper.type.endswith('OptimWrapper')
    assert dumped.optim_wrapper.type != 'mmengine.optim.OptimWrapper'
    checkpoint = next(tmp_path.glob('*_*.pth'))
    scores = []
    for config in (folder / f'{task}.py', tmp_path / f'{task}.py'):
        out = tmp_path / f'test_{len(scores)}'
        assert test_command.main([str(config), str(checkpoint), '--work-dir', str(out)]) == 0
        scores.append(json.loads((out / 'test_metrics.json').read_text())['metrics'][METRICS[task]])
    assert scores[0] == scores[1]


@pytest.mark.parametrize('config', ['resnet.py', 'with-dashes/resnet-18.py'])
def test_a_swapped_config_is_readable(folder, config, tmp_path):
    """It inherits the original by an import; where that has no name in Python, it has all of the settings."""
    out = folder / 'swapped' / f'{Path(config).stem}.py'
    arguments = [str(folder / config), '--arch', 'nano', '-o', str(out), '--weights', str(folder / 'weights.pth')]
    assert swap_command.main([*arguments, '--no-trial']) == 0
    cfg = Config.fromfile(out)
    assert ('read_base' in out.read_text()) == (config == 'resnet.py')
    assert cfg.optim_wrapper.constructor == 'mmitpn.LayerDecayOptimWrapperConstructor'
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.train_dataloader.dataset.metainfo.classes[0] == 'circle'
    for part in ('backbone', 'neck'):
        assert cfg.model[part].init_cfg.checkpoint == str(folder / 'weights.pth')
    model = build(cfg)
    assert type(model).__name__ == 'RetinaNet'
    assert isinstance(model.backbone, FastITPN)
    assert isinstance(model.neck, ITPNPyramid)
    assert model.neck.start_level == 1
    cfg.dump(tmp_path / 'dumped.py')
    assert structure(build(Config.fromfile(tmp_path / 'dumped.py'))) == structure(model)


@pytest.mark.slow
def test_a_swapped_config_runs(folder, capsys):
    out = folder / 'swapped' / 'tried.py'
    assert swap_command.main([str(folder / 'resnet.py'), '--arch', 'nano', '-o', str(out)]) == 0
    shown = capsys.readouterr().out
    assert 'ResNet 3 settings' in shown
    assert 'one training step' in shown


ANALYSIS: dict[str, Callable[[str], list[str]]] = {
    'get_flops': lambda config: [config, '--shape', '64', '64'],
    'activation_memory': lambda config: ['--config', config, '--size', '64', '--batch', '2'],
    'stage_times': lambda config: [config, '--size', '64', '--rounds', '1'],
    'browse_dataset': lambda config: [config, '--number', '2', '--out', 'sheet.png'],
}


@pytest.mark.parametrize('name', ANALYSIS)
@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_analysis(folder, kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool(f'analysis/{name}').main(ANALYSIS[name](str(folder / f'{kind}.py'))) == 0
    if name == 'browse_dataset':
        assert np.unique(np.asarray(Image.open('sheet.png').convert('L'))).size > 20


def test_the_shared_case(folder, tmp_path):
    cases = TOOLS.parents[1] / 'shared' / 'cases' / 'cfg'
    if not cases.is_dir():
        pytest.skip('the cases (shared/cases beside the project) are not here')
    for name in ('lazy_base.py', 'lazy_det.py'):
        shutil.copy(cases / name, tmp_path / name)
    cfg = Config.fromfile(tmp_path / 'lazy_det.py')
    use_pretrained(cfg, str(folder / 'weights.pth'))
    train.apply_amp(cfg)
    enable_exact_resume(cfg)
    cfg.dump(tmp_path / 'dumped.py')
    assert structure(build(Config.fromfile(tmp_path / 'dumped.py'))) == structure(build(cfg))
