r"""Make a deeper backbone of a trained one: every block of the main stage is followed by copies of itself.

    python projects/token_reduction_study/grow.py configs/quickstart/fast-itpn-nano_shapes-seg.pth nano12.pth --times 3

Block i becomes blocks 3i, 3i + 1, 3i + 2. Stem, stages, merges, norm and position embedding are copied as they are
(the loader resizes the latter to another image size); pyramid and heads are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmitpn.checkpoint import read_checkpoint

PREFIX = 'backbone.'
BLOCK = re.compile(r'blocks\.(\d+)\.(.+)')
GAMMAS = ('gamma_1', 'gamma_2')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='weights of a FastITPN backbone, such as a quick start'
    )
    parser.add_argument('out', type=Path, metavar='OUT.pth', help='file of the grown backbone')
    parser.add_argument('--times', type=int, default=3, help='blocks for each block (default: 3)')
    parser.add_argument('--factor', type=float, default=0.1, help='of the layer scale of the copies (default: 0.1)')
    return parser.parse_args(argv)


def grow_blocks(state: Mapping[str, Tensor], *, times: int = 3, factor: float = 0.1) -> dict[str, Tensor]:
    """Repeat the blocks of a main stage.

    Every copy repeats the update of its original, scaled by ``factor`` in its layer scale. With 0 it adds nothing, and
    the grown network computes exactly what the original does. A small factor keeps it close to that, and unlike 0 lets
    the copies' weights learn from the first step: their gradients are multiplied by the layer scale. With 1 the network
    would apply every update ``times`` times and its features would leave the range that later blocks were trained on.
    Growing a network by blocks that start near the identity is usual (Net2Net, arXiv 1511.05641); the layer scale as
    the place to do it is our choice.

    Args:
        state: Weights of a ``FastITPN``, by the names of its parameters, without a prefix.
        times: Blocks for each block, at least 1.
        factor: Of the layer scale (``gamma_1``, ``gamma_2``) of the copies, from 0.

    Returns:
        The weights of a ``FastITPN`` with ``times`` times the blocks, in fp32.

    Raises:
        ValueError: If an argument is outside what is allowed, or the blocks have no layer scale.
    """
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ValueError(f'times is {times!r}; allowed: integers from 1')
    if not factor >= 0:
        raise ValueError(f'factor is {factor!r}; allowed: numbers from 0')
    numbers = {int(found[1]) for name in state if (found := BLOCK.fullmatch(name))}
    missing = sorted(i for i in numbers if any(f'blocks.{i}.{gamma}' not in state for gamma in GAMMAS))
    if not numbers or missing:
        raise ValueError(
            f'the weights have {len(numbers)} blocks, without layer scale {missing}; give a FastITPN backbone whose'
            f' blocks all have {" and ".join(GAMMAS)}, such as configs/quickstart/fast-itpn-nano_shapes-seg.pth'
        )
    grown = {}
    for name, value in state.items():
        value = value.float()
        found = BLOCK.fullmatch(name)
        if found is None:
            grown[name] = value.clone()
            continue
        block, part = int(found[1]), found[2]
        for copy in range(times):
            scale = factor if copy and part in GAMMAS else 1.0
            grown[f'blocks.{block * times + copy}.{part}'] = value * scale
    return grown


def grow_file(checkpoint: str | Path, out: Path, *, times: int = 3, factor: float = 0.1) -> Path:
    """Write the grown backbone of a file, see :func:`grow_blocks`; a file that is there is whole.

    Args:
        checkpoint: File of a model with a ``backbone``.
        out: The file to write; its folder is made.
        times: Blocks for each block.
        factor: Of the layer scale of the copies.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it has no such backbone.
    """
    content = read_checkpoint(str(checkpoint))
    state = content.get('state_dict', content)
    backbone = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    grown = grow_blocks(backbone, times=times, factor=factor)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix('.partial')
    torch.save({'state_dict': {f'{PREFIX}{name}': value for name, value in grown.items()}}, partial)
    return partial.replace(out)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        print(grow_file(args.checkpoint, args.out, times=args.times, factor=args.factor))
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
