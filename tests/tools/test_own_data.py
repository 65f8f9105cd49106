"""A model is tested with its test data alone, on the classes it was trained on, with the options of its training."""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine import load
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn

from mmitpn.commands import test as test_command
from mmitpn.engine.evaluation import check_evaluation, read_classes

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]
SIDE = 16
CLASSES = ('cat', 'dog')
TASKS = ('coco', 'ade20k', 'imagenet', 'folders')


@MODELS.register_module()
class GroundTruth(BaseModel):
    """Predicts what the annotations say, so that every metric is perfect on the dataset that is read."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: list[Tensor], data_samples: list[Any], mode: str = 'tensor') -> list[Any]:
        """Copy each sample's ground truth into its prediction."""
        del inputs, mode
        for sample in data_samples:
            if 'gt_instances' in sample:
                boxes = sample.gt_instances.bboxes
                found = {'bboxes': boxes.tensor, 'labels': sample.gt_instances.labels, 'scores': torch.ones(len(boxes))}
                sample.pred_instances = InstanceData(**found)
            elif 'gt_sem_seg' in sample:
                sample.pred_sem_seg = sample.gt_sem_seg
            else:
                sample.set_pred_score(nn.functional.one_hot(sample.gt_label, 2)[0].float())
                sample.set_pred_label(sample.gt_label)
        return data_samples


def write_coco(root: Path) -> None:
    entries = [
        {'id': i + 1, 'image_id': i, 'category_id': 1 + i % 2, 'bbox': [2, 2, 8, 8], 'area': 64, 'iscrowd': 0}
        for i in range(3)
    ]
    content = {
        'images': [{'id': i, 'file_name': f'{i}.png', 'width': SIDE, 'height': SIDE} for i in range(3)],
        'annotations': entries,
        'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)],
    }
    write_image(root / 'val2017', *(f'{i}.png' for i in range(3)))
    (root / 'annotations').mkdir()
    (root / 'annotations/instances_val2017.json').write_text(json.dumps(content))


def write_image(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (SIDE, SIDE)).save(path)


def write_data(task: str, root: Path) -> None:
    """Three images to test on, and nothing else."""
    if task == 'coco':
        write_coco(root)
    elif task == 'ade20k':
        write_image(root / 'images/validation', *(f'{i}.jpg' for i in range(3)))
        (root / 'annotations/validation').mkdir(parents=True)
        for i in range(3):
            labels = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 2
            Image.fromarray(labels).save(root / f'annotations/validation/{i}.png')
    else:
        write_image(root / 'val', 'cat/0.png', 'cat/1.png', 'dog/0.png')


def dataset(task: str, split: str) -> dict[str, Any]:
    metainfo = {'metainfo': {'classes': CLASSES}}
    image = {'type': 'LoadImageFromFile'}
    if task == 'coco':
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape')
        steps = [image, {'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'PackDetInputs', 'meta_keys': keys}]
        files = {
            'ann_file': f'annotations/instances_{split}2017.json',
            'data_prefix': {'img': f'{split}2017/'},
            'test_mode': True,
        }
        return {'type': 'CocoDataset', **files, **metainfo, 'pipeline': steps}
    if task == 'ade20k':
        folder = {'train': 'training', 'val': 'validation'}[split]
        prefix = {'img_path': f'images/{folder}', 'seg_map_path': f'annotations/{folder}'}
        steps = [image, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]
        return {'type': 'BaseSegDataset', 'data_prefix': prefix, **metainfo, 'pipeline': steps}
    steps = [image, {'type': 'PackInputs'}]
    if task == 'imagenet':
        return {'type': 'ImageNet', 'split': split, **metainfo, 'pipeline': steps}
    return {'type': 'CustomDataset', 'data_prefix': split, 'pipeline': steps}


def config(task: str, root: str) -> Config:
    """A config that trains, and validates and tests on the same data, below ``root``."""
    loaders = {
        f'{split}_dataloader': {
            'batch_size': 2,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'dataset': {**dataset(task, split), 'data_root': root},
        }
        for split in ('train', 'val')
    }
    metric = {
        'coco': {'type': 'CocoMetric', 'ann_file': f'{root}/annotations/instances_val2017.json', 'metric': 'bbox'},
        'ade20k': {'type': 'IoUMetric', 'iou_metrics': ['mIoU']},
    }.get(task, {'type': 'Accuracy', 'topk': (1,)})
    return Config(
        {
            'default_scope': {'coco': 'mmdet', 'ade20k': 'mmseg'}.get(task, 'mmpretrain'),
            'model': {'type': 'GroundTruth'},
            **loaders,
            'test_dataloader': loaders['val_dataloader'],
            'val_evaluator': metric,
            'test_evaluator': metric,
            'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 1},
            'val_cfg': {'type': 'ValLoop'},
            'test_cfg': {'type': 'TestLoop'},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}},
            'param_scheduler': [{'type': 'MultiStepLR', 'milestones': [1]}],
            # Asks for the training loop before any run.
            'custom_hooks': [{'type': 'EarlyStoppingHook', 'monitor': 'any', 'rule': 'greater'}],
        }
    )


PERFECT = {'coco': ('coco/bbox_mAP', 1), 'ade20k': ('mIoU', 100), 'imagenet': ('accuracy/top1', 100)}
PERFECT['folders'] = PERFECT['imagenet']


@pytest.fixture
def checkpoint(tmp_path) -> Callable[..., str]:
    """Writes a checkpoint with the classes it was trained on."""

    def write(classes: object = CLASSES, *, key: str = 'classes') -> str:
        meta = {} if classes is None else {'dataset_meta': {key: classes}}
        torch.save({'state_dict': {'weight': torch.zeros(1)}, 'meta': meta}, tmp_path / 'model.pth')
        return str(tmp_path / 'model.pth')

    return write


@pytest.fixture
def tool(tmp_path, monkeypatch) -> Callable[..., int]:
    """Runs tools/test.py in this process and returns its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    # mmengine's logger may still hold the captured output of an earlier test, which is closed by now.
    monkeypatch.setattr(logging, 'raiseExceptions', False)

    def run(cfg: Config, *arguments: str) -> int:
        cfg.experiment_name = str(uuid4())  # mmengine keeps the scope and the loggers of a name
        cfg.dump('config.py')
        return test_command.main(['config.py', *arguments, '--work-dir', 'work'])

    return run


def metrics() -> dict[str, float]:
    return json.loads(Path('work/test_metrics.json').read_text())['metrics']


@pytest.mark.parametrize('task', TASKS)
def test_the_test_data_is_all_that_is_needed(task, tmp_path, tool, checkpoint):
    write_data(task, tmp_path / 'data')
    cfg = config(task, 'data')
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = 'nowhere'
    if task == 'coco':
        cfg.val_evaluator.ann_file = 'nowhere/annotations/instances_val2017.json'
    assert tool(cfg, checkpoint(), '--out', 'out.pkl') == 0
    name, best = PERFECT[task]
    assert metrics()[name] == pytest.approx(best)
    assert len(load('out.pkl')) == 3


def test_a_config_that_can_no_longer_train_is_tested(tmp_path, tool, checkpoint):
    write_data('coco', tmp_path / 'data')
    cfg = config('coco', 'data')
    for name in ('train_dataloader', 'optim_wrapper', 'val_evaluator'):
        cfg.pop(name)
    assert tool(cfg, checkpoint()) == 0
    assert metrics()['coco/bbox_mAP'] == pytest.approx(1)


@pytest.mark.parametrize('task', TASKS)
def test_the_options_for_own_data_count_for_the_test_too(task, tmp_path, tool, checkpoint):
    write_data(task, tmp_path / 'own')
    cfg = config(task, 'data')
    if task != 'folders':
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].dataset.metainfo.classes = ('person', 'car', 'bus')
    options = [f'{split}_dataloader.dataset.data_root=own' for split in ('train', 'val')]
    if task != 'folders':
        options += [f"{split}_dataloader.dataset.metainfo.classes=('cat','dog')" for split in ('train', 'val')]
    if task == 'coco':
        options += ['val_evaluator.ann_file=own/annotations/instances_val2017.json']
    assert tool(cfg, checkpoint(), '--cfg-options', *options) == 0
    name, best = PERFECT[task]
    assert metrics()[name] == pytest.approx(best)
    # The config that the run leaves is the one that was run.
    left = Config.fromfile('work/config.py')
    assert left.test_dataloader.dataset.data_root == 'own'
    assert left.test_evaluator == left.val_evaluator


@pytest.mark.parametrize('task', TASKS)
def test_other_classes_are_refused_before_anything_runs(task, tmp_path, tool, checkpoint, capsys):
    write_data(task, tmp_path / 'data')
    cfg = config(task, 'data')
    assert tool(cfg, checkpoint(('horse', 'Dog'))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"trained on 2 classes \('horse', 'Dog'\), but test_dataloader.dataset has 2 .*'cat', 'dog'", said)
    assert "'horse' only in the checkpoint, 'cat' only in the dataset" in said
    assert '--allow-other-classes' in said
    assert not Path('work/test_metrics.json').exists()
    assert tool(cfg, checkpoint(('horse', 'Dog')), '--allow-other-classes') == 0
    name, best = PERFECT[task]
    assert metrics()[name] == pytest.approx(best)


@pytest.mark.parametrize('task', ['coco', 'folders'])
def test_the_same_classes_in_another_order_are_refused(task, tmp_path, tool, checkpoint, capsys):
    write_data(task, tmp_path / 'data')
    assert tool(config(task, 'data'), checkpoint(('dog', 'cat'))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "index 0 is 'cat' there and 'dog' in the model" in said
    assert "use the order ('dog', 'cat')" in said
    assert '--allow-other-classes' in said


@pytest.mark.parametrize(
    ('classes', 'key'),
    [(('CAT', 'Dog'), 'classes'), (['cat', 'dog'], 'CLASSES'), (None, ''), ('cat', 'classes'), ((), 'classes')],
)
def test_names_that_fit_or_are_not_known(classes, key, tmp_path, checkpoint):
    write_data('coco', tmp_path / 'data')
    file = checkpoint(classes, key=key)
    check_evaluation(config('coco', str(tmp_path / 'data')), file, read_classes(file))


def test_names_of_a_checkpoint_of_mmdet_2(tmp_path):
    torch.save({'state_dict': {}, 'meta': {'CLASSES': CLASSES}}, tmp_path / 'old.pth')
    assert read_classes(str(tmp_path / 'old.pth')) == CLASSES


def test_a_model_of_fewer_classes_on_request(tmp_path):
    write_data('coco', tmp_path / 'data')
    cfg = config('coco', str(tmp_path / 'data'))
    cfg.model.bbox_head = {'type': 'DINOHead', 'num_classes': 1}
    with pytest.raises(ValueError, match="'dog' only in the dataset"):
        check_evaluation(cfg, 'model.pth', ('cat',))
    check_evaluation(cfg, 'model.pth', ('cat',), allow_other_classes=True)
    # More classes than categories: mmdet's metric would find none for a label.
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(ValueError, match=r'model.bbox_head.num_classes = 3'):
        check_evaluation(cfg, 'model.pth', ('cat', 'dog', 'cow'), allow_other_classes=True)


def test_classes_of_a_prompt_are_not_compared(tmp_path):
    write_data('coco', tmp_path / 'data')
    cfg = config('coco', str(tmp_path / 'data'))
    cfg.model.language_model = {'type': 'BertModel'}
    check_evaluation(cfg, 'model.pth', ('horse',))


def test_a_folder_of_shards_tells_its_classes(tmp_path, tool, capsys):
    from torch.distributed import checkpoint as dcp

    write_data('coco', tmp_path / 'data')
    shards = tmp_path / 'iter_1'
    dcp.save({'model': {'weight': torch.zeros(1)}}, checkpoint_id=shards, no_dist=True)
    torch.save({'meta': {'dataset_meta': {'classes': ('horse', 'dog')}}}, shards / 'meta.pth')
    assert tool(config('coco', 'data'), str(shards)) == 2
    assert "'horse' only in the checkpoint" in capsys.readouterr().err
    (shards / 'meta.pth').unlink()
    assert tool(config('coco', 'data'), str(shards)) == 0
    assert metrics()['coco/bbox_mAP'] == pytest.approx(1)


@pytest.mark.parametrize(
    ('task', 'gone', 'says'),
    [
        ('coco', 'annotations/instances_val2017.json', 'annotation file'),
        ('coco', 'val2017', 'image folder'),
        ('ade20k', 'annotations/validation', 'seg_map_path folder'),
        ('imagenet', 'val', 'image folder'),
        ('folders', 'val', 'image folder'),
    ],
)
def test_missing_test_data_is_a_sentence(task, gone, says, tmp_path, tool, checkpoint, capsys):
    write_data(task, tmp_path / 'data')
    (tmp_path / 'data' / gone).rename(tmp_path / 'elsewhere')
    assert tool(config(task, 'data'), checkpoint()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf'error: test_dataloader.dataset: {says} data/{gone} not found .*correct data_root', said)


def test_a_missing_file_of_the_metric_is_a_sentence(tmp_path, tool, checkpoint, capsys):
    write_data('coco', tmp_path / 'data')
    cfg = config('coco', 'data')
    cfg.test_evaluator.ann_file = 'annotations/instances_val2017.json'
    assert tool(cfg, checkpoint()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        'test_evaluator.ann_file annotations/instances_val2017.json not found; it is not joined with data_root' in said
    )


def test_what_a_file_lists_and_is_not_there_is_a_sentence(tmp_path, tool, checkpoint, capsys):
    write_data('imagenet', tmp_path / 'data')
    (tmp_path / 'data/meta').mkdir()
    (tmp_path / 'data/meta/val.txt').write_text('cat/0.png 0\ndog/gone.png 1\n')
    cfg = config('imagenet', 'data')
    assert tool(cfg, checkpoint()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: test_dataloader.dataset: 1 of 2 images looked for are missing: 'data/val/dog/gone.png'"
    )


def documented_options() -> dict[str, list[str]]:
    """The overrides that docs/own_data.md names, by the config they are for, as bash reads them."""
    section = (ROOT / 'docs/own_data.md').read_text()
    found = {}
    for block in re.findall(r'```\n(CONFIG=.*?)```', section, re.DOTALL):
        script = block.partition('python ')[0] + '\nprintf "%s\\n" "$CONFIG" "${OPTIONS[@]}"'
        name, *options = subprocess.run(
            ['bash', '-c', script], capture_output=True, text=True, check=True
        ).stdout.split()
        found[name] = options
    return found


def test_the_document_names_all_that_own_data_need():
    from mmitpn.config_check.dataset_entries import find_datasets
    from mmitpn.config_check.model import check_num_classes
    from mmitpn.engine.cli import add_common_arguments, merge_options

    found = documented_options()
    assert len(found) == 3
    for name, options in found.items():
        parser = argparse.ArgumentParser()
        add_common_arguments(parser)
        cfg = Config.fromfile(ROOT / name)
        merge_options(cfg, parser.parse_args(['--cfg-options', *options]).cfg_options)
        data = find_datasets(cfg, ('train', 'val', 'test'))
        assert [one.cfg['data_root'].rstrip('/') for one in data] == ['MY'] * 3
        assert [one.classes for one in data] == [CLASSES] * 3
        check_num_classes(cfg.model, data)
        assert cfg.test_evaluator == cfg.val_evaluator
        assert cfg.test_evaluator.get('ann_file', 'MY/').startswith('MY/')
