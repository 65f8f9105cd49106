"""The command line of training, testing and other tools: options, overrides of the config, and readable errors."""

from __future__ import annotations

import argparse
import ast
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config import DictAction as _DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmitpn import user_errors
from mmitpn.engine.config_utils import keep_readable, resolve_config
from mmitpn.engine.hooks import TrainingStopped
from mmitpn.engine.resume import CheckResumeHook
from mmitpn.engine.runtime import setup_distributed, setup_environment
from mmitpn.user_errors import describe_error

USER_ERRORS = (*user_errors.USER_ERRORS, ConfigParsingError)
COPIED = {'val_dataloader': 'test_dataloader', 'val_evaluator': 'test_evaluator'}
_AROUND_SIGNS = re.compile(r'\s*([,()\[\]])\s*')
_SPACE = '\0'


# --- options ---------------------------------------------------------------------------------------------------------


class DictAction(_DictAction):
    """mmengine's ``DictAction``, which removes the spaces from every value, with the spaces inside names kept.

    ``"('traffic light','cat')"`` and ``"/data/my set"`` are read as they are written. A tuple or list in Python's
    syntax is read as Python does, so that ``"('0','1')"`` holds strings; anything else as mmengine does.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Add options to the namespace; one without an equals sign is an error of the command line."""
        wrong = next((option for option in values or () if '=' not in option), None)
        if wrong is not None:
            raise argparse.ArgumentError(self, f'{wrong!r} must be KEY=VALUE, such as a.b.c=1')
        super().__call__(parser, namespace, values, option_string)

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """Read what follows the first equals sign: a string, number, bool, None, list or tuple."""
        try:
            value = ast.literal_eval(val.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, (list, tuple)) and val.strip()[:1] in ('(', '['):
            return value
        marked = _AROUND_SIGNS.sub(r'\1', val.strip()).replace(' ', _SPACE)
        return _restore_spaces(_DictAction._parse_iterable(marked))


def _restore_spaces(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_SPACE, ' ')
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restore_spaces, value))
    return value


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse overrides (``a.b.c=1``) as ``--cfg-options`` does; returns the values by dotted key."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='*', action=DictAction)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
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


# --- config and runner -----------------------------------------------------------------------------------------------


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Merge overrides into a config; those of the validation data also apply to test data that are a copy of it.

    Most configs end with ``test_dataloader = val_dataloader`` and ``test_evaluator = val_evaluator``. These are copies
    once the config is read, so that an override of one would leave the other on the old data. Where the config's two
    are equal, an override of the first therefore applies to the second too, unless the second's own is given; a line
    in the log names those that were applied twice.

    Args:
        cfg: The config as it was read; changed in place.
        options: Values by dotted key, as of mmengine's ``DictAction``; None changes nothing.
    """
    if not options:
        return
    copied = {}
    for key, value in options.items():
        name, dot, rest = key.partition('.')
        if name in COPIED and cfg.get(name) is not None and cfg.get(name) == cfg.get(COPIED[name]):
            copied[f'{COPIED[name]}{dot}{rest}'] = deepcopy(value)  # merging takes _delete_ out of a dict
    new = [key for key in copied if key not in options]
    if new:
        print_log(
            'the config has the same data for val and for test, so --cfg-options of val_... set test_... too: '
            f'{", ".join(new)} (give these for other values)',
            'current',
        )
    cfg.merge_from_dict({**copied, **{key: deepcopy(value) for key, value in options.items()}})


def load_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Load a config by path or name (:func:`resolve_config`), with overrides (:func:`merge_options`)."""
    cfg = Config.fromfile(resolve_config(name))
    merge_options(cfg, options)
    return cfg


def read_config(args: argparse.Namespace) -> Config:
    """Read the config with the overrides of the command line, and set this process up for it.

    The arguments are ``config`` and those of :func:`add_common_arguments`; the config gets ``work_dir`` and
    ``launcher``.
    """
    setup_environment()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)
    setup_distributed(cfg, args.launcher)
    return cfg


class FirstStepHook(Hook):
    """Records that the first step is done: what fails later is no mistake in the config."""

    priority = 'VERY_HIGH'
    done = False

    def _after_iter(self, *_: object, **__: object) -> None:
        self.done = True


def build_runner(cfg: Config) -> tuple[Runner, FirstStepHook]:
    """Build the runner of a config, which checks what it resumes from (:class:`CheckResumeHook`).

    Args:
        cfg: The complete config; its ``runner_type`` names another class than mmengine's ``Runner``.

    Returns:
        The runner, and a hook whose ``done`` is true after the first step.
    """
    keep_readable(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(CheckResumeHook())
    first_step = FirstStepHook()
    runner.register_hook(first_step)
    return runner, first_step


# --- errors ----------------------------------------------------------------------------------------------------------


def run_command(command: Callable[[argparse.Namespace, list[FirstStepHook]], None], args: argparse.Namespace) -> int:
    """Run a command line; a user's mistake becomes one line and exit status 2.

    Args:
        command: Takes the arguments and a list, to which it appends the hook of :func:`build_runner`.
        args: Parsed arguments.

    Returns:
        Exit status: 0; 2 after a mistake in the config, a path or an option; 3 for a NaN or infinite loss or a full
        disk; 143 if a signal stopped the run after it was saved. Other exceptions after the first step, and all
        with ``--debug``, propagate.
    """
    steps: list[FirstStepHook] = []
    try:
        command(args, steps)
    except TrainingStopped as stopped:
        sys.stderr.write(f'stopped by a signal: {stopped}\n')
        return 128 + signal.SIGTERM
    except USER_ERRORS as error:
        started = any(step.done for step in steps)
        disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if args.debug or (started and not disk_full):
            raise
        if started:
            sys.stderr.write(
                f'error: {error}: the disk is full; the last complete checkpoint is kept, make room (a training run'
                ' needs it for one more than max_keep_ckpts) and resume with --resume\n'
            )
            return 3
        sys.stderr.write(f'error: {describe_error(error)} (--debug shows where)\n')
        return 2
    except FloatingPointError as error:  # of StopOnInvalidLossHook, whose message is complete
        if args.debug:
            raise
        sys.stderr.write(f'error: {error}\n')
        return 3
    return 0
