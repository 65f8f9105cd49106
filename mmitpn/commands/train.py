"""Train a model from a config.

CONFIG is a file, the name of one of ours (dino-4scale_fast-itpn-b_8xb2-12e_coco), or FRAMEWORK::NAME for one of an
installed framework (mmdet::dino/dino-4scale_r50_8xb2-12e_coco). With --data DIR it is trained on the dataset in that
folder.
"""

from __future__ import annotations

import argparse
import logging
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmitpn.apis.own_data import write_resolved_config
from mmitpn.apis.report import ReportHook, add_report_argument
from mmitpn.commands.own_data import (
    add_own_data_arguments,
    apply_own_data,
    check_own_data_arguments,
    evaluate,
    resolved_path,
)
from mmitpn.config_types import is_type, type_name
from mmitpn.engine.amp import apply_amp
from mmitpn.engine.checkpointing import read_without_tensors, unwrap
from mmitpn.engine.cli import FirstStepHook, add_common_arguments, build_runner, read_config, run_command
from mmitpn.engine.compile import add_compile_argument, compile_model
from mmitpn.engine.gpu_settings import add_gpu_settings_argument, apply_gpu_settings, log_gpu_settings
from mmitpn.engine.hooks import terminate_with_launcher
from mmitpn.engine.pretrained import download_init_cfg, use_checkpoint_grid, use_pretrained, warn_if_random
from mmitpn.engine.resume import (
    check_training_state,
    enable_exact_resume,
    find_latest_checkpoint,
    log_changes,
    read_checkpoint_seed,
    wants_exact_resume,
)
from mmitpn.engine.train_options import add_train_options, apply_train_options
from mmitpn.weights import find_local_file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, its name, or FRAMEWORK::NAME')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: bf16, or fp16 with loss scaling on GPUs without it'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the config's auto_scale_lr"
    )
    parser.add_argument(
        '--pretrained',
        metavar='NAME_OR_FILE',
        help='weights that backbone and neck start from: a name (mmitpn weights list), any released Fast-iTPN file, or'
        ' URL',
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
        '--exact-resume',
        action=argparse.BooleanOptionalAction,
        help='change sampler, dataset, loop and hooks of the config so that a run can be killed at any moment, and'
        ' resumed with the result of an uninterrupted one; the changes are logged'
        ' (default: exact_resume of the config, or yes)',
    )
    parser.add_argument(
        '--check-images', action='store_true', help='open every image of the COCO datasets before the training run'
    )
    add_own_data_arguments(parser)
    add_train_options(parser)
    add_compile_argument(parser)
    add_report_argument(parser)
    add_gpu_settings_argument(parser)
    add_common_arguments(parser)
    return parser.parse_args(argv)


def apply_auto_scale_lr(cfg: Config) -> None:
    """Switch the scaling of the learning rate on in a config."""
    setting = cfg.get('auto_scale_lr')
    if not setting or 'base_batch_size' not in setting:
        raise ValueError(
            f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config, which has {setting};'
            ' add the batch size that its learning rate is for'
        )
    setting.enable = True


def apply_resume(cfg: Config, resume: str) -> None:
    """Set the checkpoint to resume from; with 'auto' and none there, the training run starts as the config says."""
    if resume == 'auto':
        found = find_latest_checkpoint(cfg.work_dir)
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
        check_training_state(resume, sharded_run=is_type(cfg.get('strategy') or {}, 'FSDPStrategy'))
    cfg.resume, cfg.load_from = True, resume
    seed = read_checkpoint_seed(resume)
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def train(args: argparse.Namespace, steps: list[FirstStepHook]) -> None:
    terminate_with_launcher(args.launcher)
    check_own_data_arguments(args)
    cfg = read_config(args)
    if args.compile is not None and cfg.get('strategy'):
        raise ValueError(
            f'--compile does not go with strategy {type_name(cfg.strategy)} of the config, which builds the model'
            ' later: leave one of the two out'
        )
    own_changes = apply_own_data(cfg, args) if args.data is not None else []
    if args.amp:
        apply_amp(cfg)
    if args.auto_scale_lr:
        apply_auto_scale_lr(cfg)
    if args.pretrained is not None:
        use_pretrained(cfg, args.pretrained, resumes=args.resume is not None or bool(cfg.get('resume')))
    apply_train_options(cfg, args)
    if args.resume is not None:
        apply_resume(cfg, args.resume)
    elif cfg.get('resume'):
        apply_resume(cfg, cfg.resume if isinstance(cfg.resume, str) else cfg.get('load_from') or 'auto')
    if not cfg.get('resume'):
        download_init_cfg(cfg)
    if cfg.get('load_from') and ('://' not in str(cfg.load_from) or find_local_file(cfg.load_from)):
        read_without_tensors(cfg.load_from)  # a file that is not a checkpoint is reported before the data are read

    from mmitpn.config_check import check_config

    images = {'sample_images': None, 'open_images': True} if args.check_images else {}
    splits = ('train', 'val') if args.data is None else ('train', 'val', 'test')  # own data are tested at the end
    for summary in check_config(cfg, splits=splits, **images):
        for text in summary.warnings:
            print_log(f'{summary.path}: {text}', 'current', logging.WARNING)
    warn_if_random(cfg)
    use_checkpoint_grid(cfg, cfg.get('load_from'))
    resolved = deepcopy(cfg) if args.data is not None else None
    if resolved is not None and is_main_process():
        write_resolved_config(resolved, resolved_path(resolved))
    changes = enable_exact_resume(cfg) if wants_exact_resume(cfg, args.exact_resume) else []
    settings = apply_gpu_settings(cfg, args.gpu_settings, training=True)
    runner, first_step = build_runner(cfg)
    if args.compile is not None:
        compile_model(unwrap(runner.model), mode=args.compile)
    for line in own_changes:
        print_log(f'--data: {line}', 'current')
    log_changes(changes)  # into the log file of the run, which the runner opens
    log_gpu_settings(settings)
    steps.append(first_step)
    report = ReportHook() if args.report else None
    if report is not None:
        runner.register_hook(report)
    runner.train()
    if resolved is not None:
        evaluate(runner, resolved, report)


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_args(argv))
