"""Does token reduction keep the accuracy? Train the quick start's detector and segmentor with each method and seed.

    python tools/analysis/compare_tokens.py --task det seg --method global gathering --seeds 0 1 2

Five to ten minutes a run on two cores. The scores go to docs/token_reduction.json, which benchmark.py draws in a sweep;
what has a score there is not trained again (--again does), so stop and go on at any time. Pictures of 128 pixels are 8x8
tokens, so the windows are 4x4 and have one gathering token: 16 tokens for each, where a window of 16x16 with four has 64.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from mmitpn.analysis.methods import METHODS, backbone_settings

ROOT = Path(__file__).resolve().parents[2]
SCORES = {'det': ('bbox_mAP', 'box AP on shapes', 1), 'seg': ('mIoU', 'mean IoU on shapes', 100)}
WINDOWS = {'window_size': 4, 'num_tokens': 1}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', nargs='+', choices=tuple(SCORES), default=list(SCORES))
    parser.add_argument('--method', nargs='+', choices=tuple(METHODS), default=list(METHODS)[:4])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--keep', type=float, default=0.5, help='share of the tokens that stay (default: 0.5)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/tokens'), help='default: work_dirs/tokens')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/token_reduction.json', metavar='FILE.json')
    parser.add_argument('--again', action='store_true', help='train also what has a score already')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='more settings of every run')
    return parser.parse_args(argv)


def options_of(method: str, keep: float) -> list[str]:
    """``--cfg-options`` of a method."""
    settings = backbone_settings(method, keep_ratio=keep, **WINDOWS)
    return [
        f'model.backbone.{group}.{name}={value}' for group, values in settings.items() for name, value in values.items()
    ]


def score_of(task: str, method: str, seed: int, args: argparse.Namespace) -> float:
    """Train, or go on with a training that was stopped, and read the score."""
    folder = args.work_dir / f'{task}_{method}_{seed}'
    options = [*options_of(method, args.keep), *args.cfg_options]
    command = [sys.executable, 'tools/quickstart.py', '--task', task, '--seed', str(seed), '--work-dir', str(folder)]
    command += ([] if args.again else ['--resume']) + (['--cfg-options', *options] if options else [])
    subprocess.run(command, cwd=ROOT, check=True)
    name, _, unit = SCORES[task]
    return json.loads((folder / 'metrics.json').read_text(encoding='utf-8'))[name] / unit


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.work_dir = args.work_dir.resolve()
    found: dict[str, dict[str, Any]] = json.loads(args.out.read_text(encoding='utf-8')) if args.out.is_file() else {}
    for seed in args.seeds:
        for task in args.task:
            for method in args.method:
                scores = found.setdefault(SCORES[task][1], {}).setdefault(method, {})
                if str(seed) in scores and not args.again:
                    continue
                scores[str(seed)] = score_of(task, method, seed, args)
                args.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    table = Table(title=f'keep {args.keep}, windows {WINDOWS}')
    for heading in ('task', 'method', 'seeds', 'mean', 'to global'):
        table.add_column(heading)
    for task, methods in found.items():
        for method, scores in methods.items():
            average = mean(scores.values())
            change = average - mean(methods['global'].values()) if 'global' in methods else float('nan')
            seeds = ' '.join(f'{score:.3f}' for score in scores.values())
            table.add_row(task, method, seeds, f'{average:.3f}', f'{change:+.3f}')
    Console(width=110).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
