r"""Switch token gathering and token migration on in a trained model, without training, and evaluate each setting.

    python projects/token_reduction_study/token_accuracy.py CONFIG CHECKPOINT --keep 0.75 0.5
    python projects/token_reduction_study/token_accuracy.py CONFIG CHECKPOINT --set "token_gathering={'num_tokens':1}" \
        "token_migration={'score':'mean'},token_gathering={}"

Each setting is evaluated by the config's own metric on its test set, beside the model as it was trained.
"""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from rich.console import Console
from rich.table import Table
from token_study.methods import METHODS, OWN_METHODS, backbone_settings, drops_tokens

from mmitpn.engine.cli import FirstStepHook, add_common_arguments, read_config, run_command
from mmitpn.engine.evaluation import add_evaluation_arguments, build_test_runner, check_evaluation, read_classes
from mmitpn.engine.pretrained import use_checkpoint_grid

ALLOWED = ('token_migration', 'token_gathering')


def parse_setting(text: str) -> dict[str, Any]:
    """``token_migration={...},token_gathering={...}`` as arguments of the backbone."""
    try:
        call = ast.parse(f'dict({text})', mode='eval').body
        found = {pair.arg: ast.literal_eval(pair.value) for pair in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        found = {}
    if not found or not set(found) <= set(ALLOWED) or not all(isinstance(value, dict) for value in found.values()):
        allowed = ','.join(f'{name}={{...}}' for name in ALLOWED)
        raise argparse.ArgumentTypeError(f'{text!r}; give one or both of {allowed}')
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, or SCOPE::NAME, with a FastITPN backbone')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file of the trained model')
    parser.add_argument('--method', nargs='+', choices=tuple(METHODS), default=list(OWN_METHODS))
    parser.add_argument('--keep', nargs='+', type=float, default=[0.5], help='fractions of the tokens that stay')
    parser.add_argument('--window-size', type=int, default=16, help='of token gathering (default: 16)')
    parser.add_argument('--num-tokens', type=int, default=4, help='gathering tokens per window (default: 4)')
    parser.add_argument('--set', nargs='+', type=parse_setting, metavar='SETTING', help='these in place of the methods')
    add_evaluation_arguments(parser)
    add_common_arguments(parser)
    return parser.parse_args(argv)


def settings(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """What is evaluated, the trained model first: a name, and arguments of the backbone."""
    if args.set:
        return [('as trained', {}), *((_describe(one), one) for one in args.set)]
    found = []
    windows = {'window_size': args.window_size, 'num_tokens': args.num_tokens}
    for method in args.method:
        for keep in args.keep if drops_tokens(method) else (1.0,):
            name = f'{method}, keep {keep:g}' if drops_tokens(method) else method
            found.append((name, backbone_settings(method, keep_ratio=keep, **windows)))
    return found


def _describe(setting: dict[str, Any]) -> str:
    return ', '.join(f'{group}: {" ".join(f"{k}={v}" for k, v in given.items())}' for group, given in setting.items())


def compare(args: argparse.Namespace, steps: list[FirstStepHook]) -> None:
    """Evaluate every setting and print the table."""
    cfg = read_config(args)
    trained = (args.checkpoint, read_classes(args.checkpoint))
    check_evaluation(cfg, *trained, allow_other_classes=args.allow_other_classes)
    cfg.load_from, cfg.resume = args.checkpoint, False
    use_checkpoint_grid(cfg, args.checkpoint)
    runner, first_step = build_test_runner(cfg, *trained, allow_other_classes=args.allow_other_classes)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'set_token_reduction'):
        raise ValueError(f'the backbone of {args.config} is {type(backbone).__name__}; only FastITPN reduces tokens')
    runner.call_hook('before_run')
    runner.load_or_resume()
    steps.append(first_step)
    rows: list[tuple[str, dict[str, float]]] = []
    todo = settings(args)
    for number, (name, given) in enumerate(todo, 1):
        print_log(f'{number} of {len(todo)}: {name}', 'current')
        backbone.set_token_reduction(**given)
        rows.append((name, runner.test_loop.run()))
    names = list(rows[0][1])
    table = Table(title=args.checkpoint)
    for heading in ('setting', *(name.rsplit('/', 1)[-1] for name in names)):
        table.add_column(heading, justify='left' if heading == 'setting' else 'right')
    for name, metrics in rows:
        table.add_row(name, *(f'{metrics[metric]:.4g}' for metric in names))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == '__main__':
    sys.exit(run_command(compare, parse_args()))
