"""What the command lines for training and testing share: the config, its overrides, and errors a user can read."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmitpn.engine.cfg_options import merge_options
from mmitpn.engine.dict_action import DictAction
from mmitpn.engine.environment import keep_readable, setup_distributed, setup_environment
from mmitpn.engine.host_configs import resolve_config
from mmitpn.engine.resume_hook import CheckResumeHook
from mmitpn.engine.signal_hook import TrainingStopped
from mmitpn.ops.install import explain_import

# What a mistake in a config, a path or an option raises, in this project and (KeyError, AssertionError) in the hosts.
USER_ERRORS = (ValueError, TypeError, KeyError, AssertionError, OSError, ImportError, SyntaxError, ConfigParsingError)


class FirstStepHook(Hook):
    """Remembers that the first step is done: what fails later is no mistake in the config."""

    priority = 'VERY_HIGH'
    done = False

    def _after_iter(self, *_: object, **__: object) -> None:
        self.done = True


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser: Parser to extend.
    """
    parser.add_argument(
        '--work-dir', help='folder for logs and results (default: work_dirs/ and the name of the config)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: a.b.c=1 d="[1,2]"; names with spaces: d="(\'traffic light\',)"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')


def read_config(args: argparse.Namespace) -> Config:
    """Read the config with the overrides of the command line, and set this process up for it.

    Args:
        args: Parsed arguments: ``config``, and those of :func:`add_common_arguments`.

    Returns:
        The config, with ``work_dir`` and ``launcher`` set.
    """
    setup_environment()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = resolve_config(args.config)
    cfg = Config.fromfile(path)
    merge_options(cfg, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    setup_distributed(cfg, args.launcher)
    return cfg


def build_runner(cfg: Config) -> tuple[Runner, FirstStepHook]:
    """Build the runner of a config, which checks what it resumes from (:class:`CheckResumeHook`).

    Args:
        cfg: Whole config; its ``runner_type`` names another class than mmengine's ``Runner``.

    Returns:
        The runner, and a hook whose ``done`` says that the first step is over.
    """
    keep_readable(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(CheckResumeHook())
    first_step = FirstStepHook()
    runner.register_hook(first_step)
    return runner, first_step


def run_command(command: Callable[[argparse.Namespace, list[FirstStepHook]], None], args: argparse.Namespace) -> int:
    """Run a command line and turn a user's mistake into one line and exit status 2.

    Args:
        command: Takes the arguments and a list, to which it appends the hook of :func:`build_runner`.
        args: Parsed arguments.

    Returns:
        Exit status: 0, 2 after a mistake in the config, a path or an option, 3 where a loss was no number or the disk
        is full, or 143 where a signal stopped the training and it was saved. What else fails after the first step, and
        everything under ``--debug``, is raised on.
    """
    steps: list[FirstStepHook] = []
    try:
        command(args, steps)
    except TrainingStopped as stopped:
        sys.stderr.write(f'stopped by a signal: {stopped}\n')
        return 128 + signal.SIGTERM
    except USER_ERRORS as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if args.debug or (any(step.done for step in steps) and not full):
            raise
        if full and any(step.done for step in steps):
            sys.stderr.write(
                f'error: {error}: the disk is full; the last checkpoint that was whole is there, make room (a training'
                ' needs it for one more than max_keep_ckpts) and go on with --resume\n'
            )
            return 3
        said = ' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
        advice = explain_import(error) if isinstance(error, ImportError) else None
        if advice is not None:
            sys.stderr.write(f'error: {advice} (--debug shows where)\n')
            return 2
        if isinstance(error, FileNotFoundError) and error.filename is not None:  # the system's own has no sentence
            said = (
                f'{error.filename} is not there (seen from {Path.cwd()}); the config or a file that it reads names it:'
                ' correct the setting (data_root, ann_file, data_prefix ...), or put it there'
            )
        name = '' if isinstance(error, (ValueError, FileNotFoundError)) else f'{type(error).__name__}: '
        sys.stderr.write(f'error: {name}{said or type(error).__name__} (--debug shows where)\n')
        return 2
    except FloatingPointError as error:  # a NaN or infinite loss (StopOnInvalidLossHook): its message says it all
        if args.debug:
            raise
        sys.stderr.write(f'error: {error}\n')
        return 3
    return 0
