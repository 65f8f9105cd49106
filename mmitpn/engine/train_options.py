"""Short options of the train command for what users change most: loggers, EMA, early stopping, freezing, queries.

Each function changes a config in place and logs what it changed; docs/recipes.md has the same as lines of a config.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmitpn.config_types import is_type, type_name
from mmitpn.utils import check_int

# Logger -> class of mmengine, module that it needs, package to install.
LOGGERS = {
    'tensorboard': ('TensorboardVisBackend', 'torch.utils.tensorboard', 'tensorboard'),
    'wandb': ('WandbVisBackend', 'wandb', 'wandb'),
    'mlflow': ('MLflowVisBackend', 'mlflow', 'mlflow'),
}
# The average covers about the last twentieth of the steps, and at most 5000 (1 / momentum). mmengine's default, an
# average over 5000 steps from the first one on, would mostly contain initial weights after a short run.
EMA = {'type': 'EMAHook', 'ema_type': 'MomentumAnnealingEMA', 'momentum': 0.0002, 'gamma': 20}
STAGES = (0, 1, 2, 3)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of the train command."""
    parser.add_argument('--log', nargs='+', choices=list(LOGGERS), default=[], help='loggers besides the local files')
    parser.add_argument('--ema', action='store_true', help='evaluate and save a moving average of the weights (EMA)')
    parser.add_argument(
        '--early-stop',
        type=int,
        metavar='N',
        help='stop after N validations without a better result, and keep the best checkpoint',
    )
    parser.add_argument(
        '--freeze',
        type=int,
        metavar='N',
        help='do not train the backbone up to stage N: 0 embeddings, 1 and 2 the stages at stride 4 and 8, 3 all of it',
    )
    parser.add_argument('--queries', type=int, metavar='N', help='number of queries of DINO, MaskDINO and other DETRs')


def apply_train_options(cfg: Config, args: argparse.Namespace) -> None:
    """Change a config as the options of :func:`add_train_options` say.

    Raises:
        ValueError: If a value is not allowed, or the config lacks what an option changes.
    """
    for kind in args.log:
        use_log(cfg, kind)
    if args.ema:
        use_ema(cfg)
    if args.early_stop is not None:
        use_early_stop(cfg, args.early_stop)
    if args.freeze is not None:
        use_freeze(cfg, args.freeze)
    if args.queries is not None:
        use_queries(cfg, args.queries)


def use_log(cfg: Config, kind: str) -> None:
    """Add a logger to the visualizer; the local files stay.

    Args:
        cfg: Config with a ``visualizer``.
        kind: ``'tensorboard'``, ``'wandb'`` or ``'mlflow'``.

    Raises:
        ValueError: If the kind is unknown, its package is not installed, or the config has no visualizer.
    """
    if kind not in LOGGERS:
        raise ValueError(f'--log is {kind!r}; allowed: {", ".join(LOGGERS)}')
    backend, module, package = LOGGERS[kind]
    visualizer = cfg.get('visualizer')
    if not visualizer:
        raise ValueError(
            f'--log {kind} needs a visualizer in the config, which has {visualizer!r}; add visualizer=dict(type='
            "'Visualizer', vis_backends=[dict(type='LocalVisBackend')])"
        )
    try:
        import_module(module)
    except ImportError as error:
        raise ValueError(f'--log {kind} needs a package that is not installed: pip install {package}') from error
    backends = list(visualizer.get('vis_backends') or [])
    if not any(is_type(one, backend) for one in backends):
        _set(cfg, 'visualizer.vis_backends', [*backends, {'type': backend}], option=f'--log {kind}')


def use_ema(cfg: Config) -> None:
    """Add a hook that averages the weights; validation and checkpoints use the average.

    Raises:
        ValueError: If the config shards its model (:class:`mmitpn.FSDPStrategy`), with which it was never tried.
    """
    hooks = list(cfg.get('custom_hooks') or [])
    if any(is_type(hook, 'EMAHook') for hook in hooks):
        print_log('--ema: the config has an EMAHook already', 'current')
        return
    if is_type(cfg.get('strategy') or {}, 'FSDPStrategy'):
        raise ValueError('--ema does not go with strategy FSDPStrategy of the config: leave one of the two out')
    _set(cfg, 'custom_hooks', [*hooks, dict(EMA)], option='--ema')


def use_early_stop(cfg: Config, patience: int) -> None:
    """Stop a run whose metric does not improve, and keep the checkpoint with the best one.

    The metric is the one that the checkpoint hook saves the best of, or the main one of the validation: mask AP before
    box AP, PQ, mIoU, top-1. It must improve by 0.001 (COCO's AP, from 0 to 1) or 0.1 (the others, 0 to 100).

    Args:
        cfg: Config with a ``val_evaluator``.
        patience: Validations without improvement after which the run stops.

    Raises:
        ValueError: If the patience is below 1, there is no validation, or its metric is unknown.
    """
    check_int('--early-stop', patience)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not checkpoint:
        raise ValueError('--early-stop keeps the best checkpoint, and the config has no default_hooks.checkpoint')
    saved = checkpoint.get('save_best')
    monitor = saved if isinstance(saved, str) and saved != 'auto' else _main_metric(cfg)
    delta = 0.001 if monitor.startswith('coco/') else 0.1
    hook = {'type': 'EarlyStoppingHook', 'monitor': monitor, 'rule': 'greater', 'min_delta': delta}
    hook.update(patience=patience, strict=True)
    hooks = [one for one in cfg.get('custom_hooks') or [] if not is_type(one, 'EarlyStoppingHook')]
    _set(cfg, 'custom_hooks', [*hooks, hook], option='--early-stop')
    if not saved:
        _set(cfg, 'default_hooks.checkpoint.save_best', monitor, option='--early-stop')
        _set(cfg, 'default_hooks.checkpoint.rule', 'greater', option='--early-stop')


def use_freeze(cfg: Config, stages: int) -> None:
    """Freeze the backbone up to a stage.

    Args:
        cfg: Config whose backbone is a FastITPN or ITPN.
        stages: See ``frozen_stages`` of :class:`mmitpn.FastITPN`.

    Raises:
        ValueError: If the number is not allowed, or the backbone is another.
    """
    if stages not in STAGES:
        raise ValueError(f'--freeze is {stages}; allowed: {", ".join(map(str, STAGES))} (all of the backbone)')
    backbone = cfg.model.get('backbone')
    if not is_type(backbone, 'FastITPN', 'ITPN'):
        raise ValueError(
            f'--freeze counts the stages of FastITPN and ITPN, and model.backbone is {type_name(backbone) or None!r}:'
            ' set what that backbone calls it by --cfg-options'
        )
    _set(cfg, 'model.backbone.frozen_stages', stages, option='--freeze')


def use_queries(cfg: Config, number: int) -> None:
    """Set the number of queries of a DETR, and lower the number of predictions per image where it is larger.

    Args:
        cfg: Config with ``num_queries`` in the model or in its head.
        number: Queries that are matched to objects.

    Raises:
        ValueError: If the number is below 1, or the model has no queries.
    """
    check_int('--queries', number)
    found = list(_find_queries(cfg.model))
    if not found:
        raise ValueError(
            f'--queries needs num_queries in the model or its head, and {type_name(cfg.model)} has none: it is for'
            ' DINO, MaskDINO and other DETRs'
        )
    for path in found:
        _set(cfg, path, number, option='--queries')
    for name in ('max_per_img', 'max_per_image'):
        if (cfg.model.get('test_cfg') or {}).get(name, 0) > number:
            _set(cfg, f'model.test_cfg.{name}', number, option='--queries')


def _find_queries(model: ConfigDict) -> Iterator[str]:
    """Paths of the number of queries: of the model, or of its head (denoising has a number of its own)."""
    if 'num_queries' in model:
        yield 'model.num_queries'
    for head in ('panoptic_head', 'decode_head', 'bbox_head'):
        if isinstance(model.get(head), Mapping) and 'num_queries' in model[head]:
            yield f'model.{head}.num_queries'


def _main_metric(cfg: Config) -> str:
    """Name of the main metric of the validation, as mmengine logs it."""
    evaluators = cfg.get('val_evaluator') or []
    for one in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        prefix = one.get('prefix')
        if is_type(one, 'CocoMetric'):
            names = one.get('metric', 'bbox')
            names = [names] if isinstance(names, str) else names
            return f'{prefix or "coco"}/{"segm" if "segm" in names else names[0]}_mAP'
        if is_type(one, 'PanopticMetric', 'CocoPanopticMetric'):
            return f'{prefix or "coco_panoptic"}/PQ'
        if is_type(one, 'IoUMetric'):
            return f'{prefix}/mIoU' if prefix else 'mIoU'
        if is_type(one, 'Accuracy'):
            return f'{prefix or "accuracy"}/top1'
    raise ValueError(
        f'--early-stop does not know the metric of val_evaluator {cfg.get("val_evaluator")}: name it in the config,'
        " default_hooks=dict(checkpoint=dict(save_best='NAME'))"
    )


def _set(cfg: Config, path: str, value: Any, *, option: str) -> None:
    """Set a value by its dotted path and log the change."""
    *parents, name = path.split('.')
    node: Any = cfg
    for parent in parents:
        node = node[parent]
    print_log(f'{option}: {path}: {node.get(name)} -> {value}', 'current')
    node[name] = value
