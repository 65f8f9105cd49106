"""The short options of the train command: what they change in a config, and that the change has its effect."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmitpn.engine.cli import load_config
from mmitpn.engine.train_options import (
    add_train_options,
    apply_train_options,
    use_early_stop,
    use_ema,
    use_log,
    use_queries,
)

DINO = 'dino-4scale_fast-itpn-t_8xb2-12e_coco'
CONFIGS = {
    DINO: 'coco/bbox_mAP',
    'mask-dino_fast-itpn-t_8xb2-50e_coco-instance': 'coco/segm_mAP',
    'mask-dino_fast-itpn-t_8xb2-50e_coco-panoptic': 'coco_panoptic/PQ',
    'mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512': 'mIoU',
    'upernet_fast-itpn-t_8xb2-160k_ade20k-512x512': 'mIoU',
    'fast-itpn-t_16xb64-100e_in1k-224': 'accuracy/top1',
}


def apply(cfg: Config, line: str) -> Config:
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    apply_train_options(cfg, parser.parse_args(line.split()))
    return cfg


@pytest.mark.parametrize('name', CONFIGS)
def test_options_on_our_configs(name: str) -> None:
    cfg = apply(load_config(name), '--ema --early-stop 3 --freeze 2')
    ema, stop = cfg.custom_hooks
    assert (ema['type'], stop['type']) == ('EMAHook', 'EarlyStoppingHook')
    assert stop['monitor'] == cfg.default_hooks.checkpoint.save_best == CONFIGS[name]
    assert stop['min_delta'] == (0.001 if stop['monitor'].startswith('coco/') else 0.1)
    assert cfg.model.backbone.frozen_stages == 2


def test_nothing_is_changed_without_options() -> None:
    assert apply(load_config(DINO), '').to_dict() == load_config(DINO).to_dict()


def test_what_a_config_has_is_kept() -> None:
    cfg = Config({'custom_hooks': [{'type': 'EMAHook', 'momentum': 0.1}, {'type': 'Own'}], 'visualizer': {}})
    use_ema(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'Own']
    assert cfg.custom_hooks[0].momentum == 0.1
    cfg = load_config(DINO, {'default_hooks.checkpoint.save_best': 'coco/bbox_mAP_50'})
    use_early_stop(cfg, 5)
    use_early_stop(cfg, 2)
    assert [(hook['monitor'], hook['patience']) for hook in cfg.custom_hooks] == [('coco/bbox_mAP_50', 2)]
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP_50'


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        (DINO, 'num_queries'),
        ('mask-dino_fast-itpn-t_8xb2-50e_coco-instance', 'panoptic_head.num_queries'),
        ('mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512', 'decode_head.num_queries'),
    ],
)
def test_queries(name: str, path: str) -> None:
    cfg = load_config(name)
    denoising = cfg.model.get('dn_cfg', {}).get('group_cfg'), cfg.model.get('panoptic_head', {}).get('denoising')
    use_queries(cfg, 50)
    node = cfg.model
    for part in path.split('.'):
        node = node[part]
    assert node == 50
    assert cfg.model.test_cfg.get('max_per_img', 50) == cfg.model.test_cfg.get('max_per_image', 50) == 50
    assert denoising == (
        cfg.model.get('dn_cfg', {}).get('group_cfg'),
        cfg.model.get('panoptic_head', {}).get('denoising'),
    )
    use_queries(cfg, 400)  # predictions per image are lowered only
    assert cfg.model.test_cfg.get('max_per_img', 50) == 50


@pytest.mark.parametrize(
    ('kind', 'module', 'backend'),
    [
        ('tensorboard', 'torch.utils.tensorboard', 'TensorboardVisBackend'),
        ('wandb', 'wandb', 'WandbVisBackend'),
        ('mlflow', 'mlflow', 'MLflowVisBackend'),
    ],
)
def test_log(kind: str, module: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    cfg = load_config(DINO)
    use_log(cfg, kind)
    use_log(cfg, kind)
    assert [one['type'] for one in cfg.visualizer.vis_backends] == ['LocalVisBackend', backend]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ValueError, match=f'--log {kind} needs a package that is not installed: pip install {kind}'):
        use_log(cfg, kind)


@pytest.mark.parametrize(
    ('name', 'line', 'words'),
    [
        (DINO, '--freeze 4', '--freeze is 4; allowed: 0, 1, 2, 3'),
        (DINO, '--queries 0', '--queries is 0; give an integer of at least 1'),
        (DINO, '--early-stop 0', '--early-stop is 0; give an integer of at least 1'),
        ('upernet_fast-itpn-t_8xb2-160k_ade20k-512x512', '--queries 9', 'EncoderDecoder has none'),
        ('mask-dino_r50_8xb2-50e_coco-instance', '--freeze 1', "model.backbone is 'ResNet'"),
        ('dino-4scale_fast-itpn-l_8xb2-12e_coco-fsdp', '--ema', 'does not go with strategy FSDPStrategy'),
        (DINO + ' val_evaluator.type=VOCMetric', '--early-stop 2', 'does not know the metric of val_evaluator'),
        (DINO + ' visualizer=None', '--log wandb', 'needs a visualizer in the config, which has None'),
    ],
)
def test_explains(name: str, line: str, words: str) -> None:
    name, *options = name.split()
    cfg = load_config(name, {key: {'None': None}.get(value, value) for key, value in (o.split('=') for o in options)})
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared
        apply(cfg, line)
    assert words in str(error.value)


# --- a run ------------------------------------------------------------------------------------------------------------


class Follower(BaseModel):
    """A weight that moves by one in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: torch.Tensor, data_samples: object = None, mode: str = 'loss') -> object:
        return {'loss': -self.weight} if mode == 'loss' else [self.weight.detach()]


class Scripted(BaseMetric):
    """A metric that hardly improves after its second evaluation."""

    default_prefix = 'coco'

    def __init__(self) -> None:
        super().__init__()
        self.values = iter([0.1, 0.3, 0.3005, 0.2, 0.9, 0.9, 0.9])

    def process(self, data_batch: object, data_samples: list) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return {'bbox_mAP': next(self.values)}


def test_a_run_stops_keeps_the_best_and_averages(tmp_path: Path) -> None:
    cfg = Config({'default_hooks': {'checkpoint': {'type': 'CheckpointHook'}}, 'val_evaluator': {'type': 'CocoMetric'}})
    apply(cfg, '--ema --early-stop 2')
    loader = {'dataset': [{'inputs': torch.zeros(1)}] * 2, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
    loader |= {'batch_size': 1, 'num_workers': 0}
    runner = Runner(
        Follower(),
        str(tmp_path),
        train_dataloader=loader,
        train_cfg={'by_epoch': True, 'max_epochs': 7},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 1.0}},
        val_dataloader=loader,
        val_cfg={},
        val_evaluator=[Scripted()],
        default_hooks=cfg.default_hooks,
        custom_hooks=cfg.custom_hooks,
        experiment_name='options',
        default_scope='mmengine',
    )
    runner.train()
    assert runner.epoch == 4  # 0.3005 is no improvement of 0.3 by 0.001: two validations without one
    (best,) = tmp_path.glob('best_coco_bbox_mAP_epoch_*.pth')
    assert best.stem.endswith('_3')
    saved = torch.load(best, weights_only=False)
    average = 0.0
    for step in range(6):  # the first update copies the weights
        average = 1.0 if step == 0 else average + (step + 1 - average) * 20 / (20 + step)
    assert float(saved['state_dict']['weight']) == pytest.approx(average)
    assert 5.5 < average < 6  # close to the last weights: a short run is not averaged with its beginning
