"""The command lines for training and testing, on a toy detector, segmentor and classifier and synthetic images."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine import load
from mmengine.config import Config
from PIL import Image

from mmitpn.engine.cli import FirstStepHook, run_command

ROOT = Path(__file__).parents[2]
IMAGES = 4
TOY = """
default_scope = 'mmdet'
custom_imports = dict(imports=['toy_hooks'])
data_root = {root!r}
classes = ('square', 'bar')
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(
    type='CocoDataset', data_root=data_root, ann_file='train.json', data_prefix=dict(img='images/'),
    metainfo=dict(classes=classes), pipeline=pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
val_dataloader = test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, **dataset))
val_evaluator = test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'train.json', metric='bbox')
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, out_indices=(1, 2, 3), norm_eval=True,
        norm_cfg=dict(type='BN', requires_grad=True), frozen_stages=-1),
    neck=dict(
        type='FPN', in_channels=[16, 32, 64], out_channels=32, num_outs=5, start_level=0,
        add_extra_convs='on_output'),
    bbox_head=dict(
        type='FCOSHead', num_classes=2, in_channels=32, feat_channels=32, stacked_convs=1, norm_cfg=None),
    test_cfg=dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001, momentum=0.9))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[1])]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    visualization=dict(type='DetVisualizationHook'))
custom_hooks = [dict(type='RecordLosses')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=4)
"""
HOOKS = """
import os, time
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class RecordLosses(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(float(os.environ.get('TOY_SLEEP', 0)))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(Path(runner.work_dir) / f'losses.{get_rank()}', 'a') as file:
            file.write(f'{runner.iter} {float(outputs["loss"])!r}\\n')
"""
SEGMENTATION = """
default_scope = 'mmseg'
data_root = {root!r}
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root=data_root, img_suffix='.png', seg_map_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='maps'),
    metainfo=dict(classes=('ground', 'thing'), palette=[[0, 0, 0], [255, 0, 0]]))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **dataset))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **dataset))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), pad_val=0, seg_pad_val=255),
    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN')),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=2, norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
log_processor = dict(by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmitpn.FastITPN', arch=dict(depths=(1, 2, 3), embed_dim=64, num_heads=1), out_indices=(2,),
        final_norm=False),
    head=dict(type='mmitpn.MeanPoolClsHead', num_classes=3, in_channels=64))
data_preprocessor = dict(num_classes=3, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True)
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet', data_root={root!r}, split='val', metainfo=dict(classes=('n0', 'n1', 'n2')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
"""


@pytest.fixture(scope='module')
def toy(tmp_path_factory) -> Path:
    """A folder with a config, four images of squares and bars, and their annotations."""
    from mmcv import imwrite

    folder = tmp_path_factory.mktemp('toy')
    images, boxes = [], []
    for index in range(IMAGES):
        image = np.full((64, 64, 3), 60, np.uint8)
        for kind, (width, height) in enumerate([(16, 16), (32, 8)]):
            x, y = 4 + 6 * index, 6 + 28 * kind
            image[y : y + height, x : x + width] = 120 + 100 * kind
            box = [x, y, width, height]
            boxes.append({'id': len(boxes) + 1, 'image_id': index, 'category_id': kind + 1, 'bbox': box})
            boxes[-1] |= {'area': width * height, 'iscrowd': 0}
        imwrite(image, str(folder / 'images' / f'{index}.png'))
        imwrite((image[..., 0] > 100).astype(np.uint8), str(folder / 'maps' / f'{index}.png'))
        images.append({'id': index, 'file_name': f'{index}.png', 'width': 64, 'height': 64})
    categories = [{'id': 1, 'name': 'square'}, {'id': 2, 'name': 'bar'}]
    (folder / 'train.json').write_text(json.dumps({'images': images, 'annotations': boxes, 'categories': categories}))
    (folder / 'toy.py').write_text(TOY.format(root=f'{folder}/'))
    (folder / 'segmentation.py').write_text(SEGMENTATION.format(root=str(folder)))
    (folder / 'toy_hooks.py').write_text(HOOKS)
    return folder


def environment(toy: Path, **more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(toy), str(ROOT), os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': paths, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **more}


def call(toy: Path, *command: object, status: int = 0, **more: str) -> str:
    """Run a command in the toy's folder; return what it printed, after checking its exit status."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=toy, env=environment(toy, **more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


def train(toy: Path, *options: object, **more: str) -> str:
    return call(toy, sys.executable, ROOT / 'tools' / 'train.py', *options, **more)


def evaluate(toy: Path, *options: object) -> str:
    return call(toy, sys.executable, ROOT / 'tools' / 'test.py', *options)


def load_tool(name: str) -> ModuleType:
    return importlib.import_module(f'mmitpn.commands.{name}')


@pytest.fixture
def mistake(toy, tmp_path, monkeypatch, capsys):
    """Runs a tool with a mistake in its arguments, in this process; returns the one line that it says."""

    def run(tool: str, *options: object) -> str:
        monkeypatch.chdir(toy)
        monkeypatch.syspath_prepend(str(toy))
        monkeypatch.setenv('LOCAL_RANK', '0')
        # mmengine's logger may still hold the captured output of an earlier test, which is closed by now.
        monkeypatch.setattr(logging, 'raiseExceptions', False)
        assert load_tool(tool).main([*map(str, options), '--work-dir', str(tmp_path)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith('error: ')
        assert not any('Traceback' in line for line in said)
        return said[-1]

    return run


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_compile_reaches_the_built_model(toy, trained, mistake, monkeypatch, tool):
    def compile_model(model, *, mode):
        raise ValueError(f'{type(model).__name__} in mode {mode}')

    monkeypatch.setattr(load_tool(tool), 'compile_model', compile_model)
    files = ['toy.py'] if tool == 'train' else ['toy.py', trained / 'epoch_2.pth']
    assert 'FCOS in mode reduce-overhead' in mistake(tool, *files, '--compile', 'reduce-overhead')
    assert 'FCOS in mode default' in mistake(tool, *files, '--compile')


def test_compile_does_not_go_with_a_strategy(mistake):
    said = mistake('train', 'toy.py', '--compile', '--cfg-options', 'strategy.type=mmitpn.FSDPStrategy')
    assert '--compile does not go with strategy FSDPStrategy' in said


def losses(work_dir: Path, rank: int = 0) -> dict[int, float]:
    lines = (work_dir / f'losses.{rank}').read_text().splitlines()
    return {int(step): float(loss) for step, loss in map(str.split, lines)}


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory) -> Path:
    """The work dir of a complete training run."""
    work_dir = tmp_path_factory.mktemp('trained')
    train(toy, 'toy.py', '--work-dir', work_dir)
    return work_dir


def test_training_leaves_complete_checkpoints_only(trained):
    assert sorted(losses(trained)) == [0, 1, 2, 3]
    assert [p.name for p in trained.glob('*.pth')] == ['epoch_2.pth']
    assert (trained / 'last_checkpoint').read_text().endswith('epoch_2.pth')
    assert not list(trained.glob('.*'))


def test_what_exact_resume_changes_is_logged_and_marked_in_the_dumped_config(trained):
    (log,) = trained.glob('*/*.log')
    text = log.read_text()
    assert 'exact_resume=True changed the config (--no-exact-resume leaves it as it is):' in text
    for change in (
        'default_hooks.checkpoint.type: CheckpointHook -> mmitpn.AtomicCheckpointHook',
        'custom_hooks: none -> mmitpn.SeedStepHook',
        'train_dataloader.sampler.type: DefaultSampler -> mmitpn.SeededSampler',
        'train_dataloader.dataset: CocoDataset -> mmitpn.SeededDataset of CocoDataset',
        'train_cfg.type: EpochBasedTrainLoop -> mmitpn.ResumableEpochLoop',
    ):
        assert change in text
    assert Config.fromfile(trained / 'toy.py', import_custom_modules=False).exact_resume is True


@pytest.mark.parametrize('option', ['--no-exact-resume', 'exact_resume=False'])
def test_without_exact_resume_the_config_is_left_as_it_is(toy, tmp_path, monkeypatch, option):
    """The runner gets the config as it was given, with the work dir and the launcher."""
    monkeypatch.chdir(toy)
    monkeypatch.syspath_prepend(str(toy))
    monkeypatch.setenv('LOCAL_RANK', '0')
    tool, built = load_tool('train'), []

    def build(cfg):
        built.append(cfg.to_dict())
        return SimpleNamespace(train=lambda: None, register_hook=lambda _: None), FirstStepHook()

    monkeypatch.setattr(tool, 'build_runner', build)
    given = Config.fromfile('toy.py').to_dict()
    setting = [] if option.startswith('--') else ['--cfg-options', option]
    for arguments in (setting or [option], ['--exact-resume', *setting], []):
        assert tool.main(['toy.py', '--work-dir', str(tmp_path), *arguments]) == 0
    added = {'work_dir': str(tmp_path), 'launcher': 'none'}
    if setting:
        added['exact_resume'] = False
    assert built[0] == {**given, **added}
    assert all(cfg['exact_resume'] is True for cfg in built[1:])
    assert built[2]['train_dataloader']['sampler']['type'] == 'mmitpn.SeededSampler'


def test_evaluation_prints_and_writes_the_metrics(toy, trained, tmp_path):
    printed = evaluate(
        toy, 'toy.py', trained / 'epoch_2.pth', '--work-dir', tmp_path,
        '--out', tmp_path / 'out.json', '--show-dir', tmp_path / 'drawings',
    )  # fmt: skip
    assert 'Average Precision' in printed
    report = json.loads((tmp_path / 'test_metrics.json').read_text())
    assert f'coco/bbox_mAP: {report["metrics"]["coco/bbox_mAP"]:.4f}' in printed
    predictions = json.loads((tmp_path / 'out.json').read_text())
    assert [entry['img_id'] for entry in predictions] == list(range(IMAGES))
    assert len(predictions[0]['bboxes'][0]) == 4
    assert len(predictions[0]['scores']) == len(predictions[0]['labels']) > 0
    assert len(list((tmp_path / 'drawings').rglob('*.png'))) == IMAGES
    for folder, kind in ((tmp_path, 'test'), (trained, 'training run')):
        page = (folder / 'report.html').read_text()
        assert f'<dd>{kind}</dd>' in page
        assert '<h2>Confusion matrix</h2>' in page  # of the last validation after training
        assert page.count('data:image/jpeg') == 3


@pytest.mark.slow
def test_evaluation_with_augmentation(toy, trained, tmp_path):
    out = tmp_path / 'out.pkl'
    evaluate(toy, 'toy.py', trained / 'epoch_2.pth', '--work-dir', tmp_path, '--tta', '--out', out)
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']
    assert len(load(out)) == IMAGES


OTHER_MODEL = ['--cfg-options', 'model.bbox_head.stacked_convs=2']


def test_a_checkpoint_of_another_model_is_refused(trained, mistake):
    said = mistake('test', 'toy.py', trained / 'epoch_2.pth', *OTHER_MODEL)
    assert 'does not fit the config' in said
    assert 'bbox_head.cls_convs.1' in said


def test_weights_of_a_backbone_are_not_evaluated(mistake):
    """Before anything is downloaded."""
    said = mistake('test', 'toy.py', 'fast-itpn-t')
    assert 'fast-itpn-t names pre-trained weights of a backbone, without a head' in said
    assert 'mmitpn train CONFIG --pretrained fast-itpn-t' in said


@pytest.mark.parametrize('automatic', [False, True])
def test_a_training_run_of_another_model_is_not_resumed(trained, tmp_path, mistake, automatic):
    checkpoint = trained / 'epoch_2.pth'
    if automatic:
        shutil.copy(checkpoint, tmp_path / 'epoch_2.pth')
        checkpoint = tmp_path / 'epoch_2.pth'
    said = mistake(
        'train', 'toy.py', '--resume', *([] if automatic else [checkpoint]),
        '--cfg-options', 'model.bbox_head.feat_channels=16', 'train_cfg.max_epochs=3',
    )  # fmt: skip
    assert f'{checkpoint} is of another model' in said
    assert 'bbox_head.cls_convs.0.conv.weight is (32, 32, 3, 3) in the file and (16, 32, 3, 3) in the model' in said
    assert f'--cfg-options load_from={checkpoint} in place of --resume' in said
    assert not (tmp_path / 'losses.0').exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_taken_on_request(toy, trained, tmp_path):
    evaluate(toy, 'toy.py', trained / 'epoch_2.pth', '--work-dir', tmp_path, '--allow-partial', *OTHER_MODEL)
    metrics = json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']
    assert metrics['coco/bbox_mAP'] >= 0  # an untrained head was evaluated


@pytest.mark.slow
def test_a_killed_run_resumes_where_it_stopped(toy, trained, tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), 'toy.py', '--work-dir', str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=toy, env=environment(toy, TOY_SLEEP='0.5'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while not (tmp_path / 'last_checkpoint').exists():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = losses(tmp_path)
    assert max(before) < 3, 'killed too late for the test to mean anything'
    (tmp_path / 'losses.0').unlink()
    (tmp_path / '.epoch_2.pth.1.mmitpn-tmp').write_bytes(b'half of a checkpoint')

    printed = train(toy, 'toy.py', '--work-dir', tmp_path, '--resume')
    assert 'resumed epoch: 1, iter: 2' in printed
    after = losses(tmp_path)
    assert sorted(after) == [2, 3]
    whole = losses(trained)
    assert {**before, **after} == pytest.approx({step: whole[step] for step in range(4)}, rel=1e-6)
    assert not list(tmp_path.glob('.*'))
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_2.pth']


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_as_the_config_says(toy, trained, tmp_path):
    options = ['train_cfg.max_epochs=1', f'load_from={trained / "epoch_2.pth"}']
    printed = train(toy, 'toy.py', '--work-dir', tmp_path, '--resume', '--cfg-options', *options)
    assert 'starts from the beginning' in printed
    assert f'Load checkpoint from {trained / "epoch_2.pth"}' in printed
    assert min(losses(tmp_path)) == 0


@pytest.mark.slow
def test_mixed_precision_and_the_scaled_learning_rate(toy, tmp_path):
    options = ['--amp', '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=1']
    printed = train(toy, 'toy.py', '--work-dir', tmp_path, *options)
    assert all(np.isfinite(list(losses(tmp_path).values())))
    assert 'lr: 5.0000e-04' in printed  # half of the batch size that the learning rate is for
    kind = 'AmpOptimWrapper' if torch.cuda.is_available() else 'mmitpn.BFloat16OptimWrapper'
    assert f"type='{kind}'" in (tmp_path / 'toy.py').read_text()


@pytest.mark.slow
def test_a_segmentor_trains_and_is_evaluated(toy, tmp_path):
    train(toy, 'segmentation.py', '--work-dir', tmp_path)
    checkpoint, drawings = tmp_path / 'iter_2.pth', tmp_path / 'drawings'
    out = ['--out', tmp_path / 'out.pkl', '--show-dir', drawings]
    printed = evaluate(toy, 'segmentation.py', checkpoint, '--work-dir', tmp_path, *out)
    score = json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']['mIoU']
    assert f'mIoU: {score:.4f}' in printed
    assert len(load(tmp_path / 'out.pkl')) == len(list(drawings.rglob('*.png'))) == IMAGES


@pytest.mark.slow
def test_two_processes_take_the_same_first_step_as_one(toy, trained, tmp_path):
    options = ['--cfg-options', 'train_dataloader.batch_size=1', 'train_cfg.max_epochs=1']
    call(toy, 'bash', ROOT / 'tools' / 'dist_train.sh', 'toy.py', 2, '--work-dir', tmp_path, *options)
    ranks = [losses(tmp_path, rank) for rank in (0, 1)]
    assert sorted(ranks[0]) == sorted(ranks[1]) == [0, 1]
    together = {step: (ranks[0][step] + ranks[1][step]) / 2 for step in (0, 1)}
    # The second step shows that the gradients were averaged too.
    assert together == pytest.approx({step: losses(trained)[step] for step in (0, 1)}, rel=1e-4)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_evaluate_as_one(toy, trained, tmp_path):
    call(toy, 'bash', ROOT / 'tools' / 'dist_test.sh', 'toy.py', trained / 'epoch_2.pth', 2, '--work-dir', tmp_path)
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']


@pytest.mark.slow
def test_a_failing_process_fails_the_launcher(toy, tmp_path):
    script = ROOT / 'tools' / 'dist_train.sh'
    printed = call(toy, 'bash', script, 'missing.py', 2, '--work-dir', tmp_path, status=1)
    assert "no config file 'missing.py'" in printed


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_scripts_without_arguments_say_how_to_use_them(toy, script):
    assert f'usage: bash tools/{script}' in call(toy, 'bash', ROOT / 'tools' / script, status=2)


def test_several_machines_need_an_address(toy):
    script = ROOT / 'tools' / 'dist_train.sh'
    assert 'NNODES=2 needs MASTER_ADDR' in call(toy, 'bash', script, 'toy.py', 1, status=2, NNODES='2')


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['missing.py'], "no config file 'missing.py'"),
        (['mmdet::retinanet/none'], "mmdet has no config 'retinanet/none'"),
        (['toy.py', '--resume', 'gone.pth'], "no file 'gone.pth'"),
        (['toy.py', '--launcher', 'pytorch'], 'tools/dist_train.sh'),
        (['toy.py', '--cfg-options', 'data_root=nowhere/', 'dataset.data_root=nowhere/',
          'train_dataloader.dataset.data_root=nowhere/'], 'nowhere'),
        (['toy.py', '--cfg-options', 'model.backbone.type=mmitpn.Nothing'], 'Nothing'),
        (['toy.py', '--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper'], '--amp cannot change'),
        (['toy.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], '--auto-scale-lr needs'),
    ],
)  # fmt: skip
def test_mistakes_in_training_are_one_line(mistake, options, says):
    assert says in mistake('train', *options)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (['toy.py', 'gone.pth'], "no checkpoint 'gone.pth'"),
        (['toy.py', 'toy.py', '--show-dir', 'x', '--cfg-options', 'default_hooks.visualization.type=Other'], 'Other'),
        (['mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024', 'toy.py', '--tta', '--cfg-options', 'tta_model=None'],
         'tta'),
        (['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 'toy.py', '--tta'],
         "--tta merges boxes only (mmdet's DetTTAModel), and the model of the config predicts masks (mask_head)"),
        (['mask-dino_fast-itpn-t_8xb2-50e_coco-panoptic', 'toy.py', '--tta'], '(panoptic_head)'),
        (['mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco', 'toy.py', '--tta'], '(mask_thr_binary)'),
    ],
)  # fmt: skip
def test_mistakes_in_testing_are_one_line(mistake, options, says):
    assert says in mistake('test', *options)


def test_a_mistake_shows_where_under_debug(toy, monkeypatch):
    monkeypatch.chdir(toy)
    with pytest.raises(FileNotFoundError, match='no config file'):
        load_tool('train').main(['missing.py', '--debug'])


def test_what_fails_after_the_first_step_is_no_mistake_of_the_user(capsys):
    def command(_: object, steps: list) -> None:
        steps.append(FirstStepHook())
        steps[0].after_train_iter(None, 0)
        raise ValueError('in the middle of a run')

    with pytest.raises(ValueError, match='middle'):
        run_command(command, argparse.Namespace(debug=False))
    assert 'error:' not in capsys.readouterr().err


@pytest.fixture
def classifier(tmp_path, authors_weights):
    """A config, a fine-tuned file, and the labels that it gives to the images."""
    pytest.importorskip('mmpretrain')
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / 'data' / 'val' / f'n{label}'
        folder.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    weights = authors_weights(classes=3, norm='fc_norm')
    weights['head.weight'].zero_()
    weights['head.bias'] = torch.tensor([0.0, 1.0, 0.0])  # everything is of class 1
    torch.save({'model': weights}, tmp_path / 'finetuned.pth')
    (tmp_path / 'config.py').write_text(CLASSIFIER.format(root=str(tmp_path / 'data')))
    return tmp_path


def evaluate_classifier(folder: Path, *arguments: str) -> int:
    return load_tool('test').main([str(folder / 'config.py'), *arguments, '--work-dir', str(folder / 'work')])


def test_top_1_of_an_authors_file(classifier):
    assert evaluate_classifier(classifier, str(classifier / 'finetuned.pth')) == 0
    metrics = json.loads((classifier / 'work' / 'test_metrics.json').read_text())['metrics']
    assert metrics['accuracy/top1'] == pytest.approx(100 / 3, abs=0.01)


def test_a_file_without_the_head_is_refused(classifier, authors_weights, capsys):
    torch.save({'model': authors_weights()}, classifier / 'backbone.pth')
    assert evaluate_classifier(classifier, str(classifier / 'backbone.pth')) == 2
    error = capsys.readouterr().err
    assert 'set final_norm=True on the backbone and with_norm=False on the head' in error
