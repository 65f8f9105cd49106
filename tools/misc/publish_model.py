#!/usr/bin/env python3
"""Extract weights and class names from a training checkpoint into a file to publish.

    python tools/misc/publish_model.py work_dirs/RUN/epoch_12.pth fast-itpn-b_dino.pth
    python tools/misc/publish_model.py work_dirs/RUN/epoch_12.pth fast-itpn-b_dino.safetensors --dtype fp16

Optimizer, schedules, logs and message hub are removed, as are averaged weights that the run did not use. The first
eight digits of the file's SHA-256 are added to its name. The written file is read back weights-only and compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mmitpn.atomic import write_atomic
from mmitpn.checkpoint import read_checkpoint, unwrap_state_dict
from mmitpn.version import __version__

DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'fp32': torch.float32}
PLAIN = (str, int, float, bool, type(None))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='checkpoint of a training run')
    parser.add_argument('target', metavar='OUT', type=Path, help='.pth or .safetensors; the hash is added to its name')
    parser.add_argument(
        '--dtype', choices=tuple(DTYPES), help='type of the floating-point weights (default: unchanged)'
    )
    parser.add_argument('--prefix', nargs='+', help="keep only weights with these prefixes, such as 'backbone.'")
    return parser.parse_args(argv)


def weights_of(content: Mapping[str, Any], prefixes: list[str] | None) -> dict[str, Tensor]:
    """The weights that the run evaluates with."""
    state, _ = unwrap_state_dict(content)
    found = {name: value for name, value in state.items() if not prefixes or name.startswith(tuple(prefixes))}
    if not found:
        raise ValueError(f'no weights below {", ".join(prefixes)}: the file has {", ".join(list(state)[:5])}')
    broken = [name for name, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ValueError(f'{len(broken)} weights are not finite ({", ".join(broken[:3])}): the training run diverged')
    return found


def plain(value: Any) -> Any:
    """Numbers, text, and lists and dicts of them; anything else becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, PLAIN) else None


def meta_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata for users of the weights: the classes, and the version that wrote the file."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    kept = {key: plain(meta[key]) for key in ('dataset_meta', 'epoch', 'iter') if key in meta}
    return {**kept, 'mmitpn_version': __version__}


def encode(state: dict[str, Tensor], meta: dict[str, Any], suffix: str) -> bytes:
    """The bytes of the file."""
    if suffix == '.safetensors':
        tensors = {name: value.contiguous().clone() for name, value in state.items()}
        return safetensors.torch.save(tensors, metadata={'format': 'pt', 'meta': json.dumps(meta)})
    buffer = BytesIO()
    # Cloned: saving a view would save its whole storage.
    torch.save({'state_dict': {name: value.clone() for name, value in state.items()}, 'meta': meta}, buffer)
    return buffer.getvalue()


def check(path: Path, state: Mapping[str, Tensor]) -> None:
    """Read the file as its users will, and compare."""
    content = (
        safetensors.torch.load_file(path)
        if path.suffix == '.safetensors'
        else torch.load(path, map_location='cpu', weights_only=True)['state_dict']
    )
    if content.keys() != state.keys() or not all(torch.equal(content[name], state[name]) for name in state):
        raise ValueError(f'{path} does not contain what was written to it; check the disk')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.target.suffix not in ('.pth', '.safetensors'):
            raise ValueError(f'OUT is {args.target}; its name must end in .pth or .safetensors')
        content = read_checkpoint(args.source)
        state = weights_of(content, args.prefix)
        if args.dtype:
            kind = DTYPES[args.dtype]
            state = {name: v.to(kind) if v.is_floating_point() else v for name, v in state.items()}
        data = encode(state, meta_of(content), args.target.suffix)
        digest = hashlib.sha256(data).hexdigest()[:8]
        path = args.target.with_name(f'{args.target.stem}-{digest}{args.target.suffix}')
        write_atomic(path, data)
        check(path, state)
    except (ValueError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    size = sum(value.numel() for value in state.values()) / 1e6
    print(f'{path}: {len(state)} weights, {size:.1f} M values, {path.stat().st_size / 1e6:.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
