"""Train a model from a config.

CONFIG is a file, or HOST::NAME for a config of an installed host: mmdet::dino/dino-4scale_r50_8xb2-12e_coco.
"""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import argparse
import logging
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from mmitpn.config_types import is_type, type_name
from mmitpn.engine.checkpoint_hook import find_resumable
from mmitpn.engine.checkpoint_loader import check_training_state, read_state
from mmitpn.engine.command_line import FirstStepHook, add_common_arguments, build_runner, read_config, run_command
from mmitpn.engine.fault_tolerance import seed_of, use_fault_tolerance
from mmitpn.engine.position_grid import use_checkpoint_grid
from mmitpn.engine.pretrained import use_pretrained, warn_if_random
from mmitpn.engine.signal_hook import stop_with_launcher


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, or HOST::NAME')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: fp16 with loss scaling on GPUs, bf16 on CPUs'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the config's auto_scale_lr"
    )
    parser.add_argument(
        '--pretrained',
        metavar='FILE',
        help='weights that backbone and neck start from: any released Fast-iTPN file, or URL',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help="resume a training run from its checkpoint: without FILE (or with 'auto') from the newest in the work dir,"
        ' if there is one',
    )
    parser.add_argument(
        '--check-images', action='store_true', help='open every image of the COCO datasets before the training run'
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def apply_amp(cfg: Config) -> None:
    """Switch mixed precision on in a config."""
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        raise ValueError(f'--amp needs optim_wrapper in the config, which has {wrapper!r}')
    kind = type_name(wrapper) or 'OptimWrapper'
    if is_type(wrapper, 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
        print_log(f'--amp: the config has it already ({kind})', 'current')
    elif kind != 'OptimWrapper':
        raise ValueError(
            f'--amp cannot change optim_wrapper.type={kind!r}; allowed: OptimWrapper; set the precision there'
        )
    elif get_device() == 'cpu':
        wrapper.type = 'mmitpn.BFloat16OptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def apply_auto_scale_lr(cfg: Config) -> None:
    """Switch the scaling of the learning rate on in a config."""
    setting = cfg.get('auto_scale_lr')
    if not setting or 'base_batch_size' not in setting:
        raise ValueError(
            f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config, which has {setting};'
            ' add the batch size that its learning rate was made for'
        )
    setting.enable = True


def apply_resume(cfg: Config, resume: str) -> None:
    """Set the checkpoint to resume from; with 'auto' and none there, the training run starts as the config says."""
    if resume == 'auto':
        found = find_resumable(cfg.work_dir)
        if found is None:
            print_log(
                f'--resume: no checkpoint in {cfg.work_dir}, so the training run starts from the beginning', 'current'
            )
            cfg.resume = False
            return
        resume = str(found)
    elif '://' not in resume and not Path(resume).exists():
        raise FileNotFoundError(
            f"--resume: no file {resume!r}; give a checkpoint, or 'auto' for the newest in {cfg.work_dir}"
        )
    if '://' not in resume:
        check_training_state(resume, in_shards=is_type(cfg.get('strategy') or {}, 'FSDPStrategy'))
    cfg.resume, cfg.load_from = True, resume
    seed = seed_of(resume)
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def train(args: argparse.Namespace, steps: list[FirstStepHook]) -> None:
    stop_with_launcher(args.launcher)
    cfg = read_config(args)
    if args.amp:
        apply_amp(cfg)
    if args.auto_scale_lr:
        apply_auto_scale_lr(cfg)
    if args.pretrained is not None:
        use_pretrained(cfg, args.pretrained)
    if args.resume is not None:
        apply_resume(cfg, args.resume)
    elif cfg.get('resume'):
        apply_resume(cfg, cfg.resume if isinstance(cfg.resume, str) else cfg.get('load_from') or 'auto')
    if cfg.get('load_from') and '://' not in str(cfg.load_from):
        read_state(cfg.load_from)  # a file that is no checkpoint is reported before the data are read

    from mmitpn.config_check import check_config

    everything = {'sample_images': None, 'open_images': True} if args.check_images else {}
    for summary in check_config(cfg, **everything):
        for text in summary.warnings:
            print_log(f'{summary.path}: {text}', 'current', logging.WARNING)
    warn_if_random(cfg)
    use_checkpoint_grid(cfg, cfg.get('load_from'))
    use_fault_tolerance(cfg)
    runner, first_step = build_runner(cfg)
    steps.append(first_step)
    runner.train()


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
