r"""Draw what token migration dropped from a photograph, and where the attention of gathering tokens goes.

    python projects/token_reduction_study/visualize_tokens.py IMAGE --config CONFIG --checkpoint FILE --out tokens.png
    python projects/token_reduction_study/visualize_tokens.py IMAGE --config CONFIG --checkpoint FILE --cfg-options \
        model.backbone.token_gathering.window_size=16 model.backbone.token_migration.keep_ratio=0.5

CONFIG is that of a detector, segmentor or classifier with a Fast-iTPN backbone, of this repository or of mmdet, mmseg
or mmpretrain; the image goes through its test pipeline. FILE is a checkpoint of the whole model, or a released file for
its backbone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from token_study.trace import draw_tokens, trace_tokens

from mmitpn.checkpoint import load_pretrained
from mmitpn.config_types import type_name
from mmitpn.engine.cli import DictAction
from mmitpn.engine.config_utils import register_host_configs, resolve_config
from mmitpn.testing.demo_inputs import build_from_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path, help='an image file')
    parser.add_argument('--config', required=True, help='config file, or SCOPE::NAME such as mmdet::NAME')
    parser.add_argument('--checkpoint', help='weights; without them they are random')
    parser.add_argument('--out', type=Path, default=Path('tokens.png'), metavar='FILE.png', help='default: tokens.png')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def prepare(cfg: Config, image: Path) -> dict:
    """The image after the test pipeline, as a batch of one."""
    pipeline = [step for step in cfg.test_dataloader.dataset.pipeline if 'LoadAnnotations' not in type_name(step)]
    return pseudo_collate([Compose(pipeline)({'img_path': str(image), 'img_id': 0})])


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    register_host_configs()
    try:
        if not args.image.is_file():
            raise FileNotFoundError(f'no image {args.image}')
        path = resolve_config(args.config)
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(args.cfg_options or {})
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
            model = build_from_config(path, overrides=args.cfg_options).eval()
            if args.checkpoint:
                load_pretrained(model, args.checkpoint)
            batch = prepare(cfg, args.image)
            with torch.no_grad():
                inputs = model.data_preprocessor(batch, False)['inputs']
            trace = trace_tokens(model.backbone, inputs)
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    image = batch['inputs'][0].numpy()[::-1].transpose(1, 2, 0)  # the pipelines of mmdet and mmseg load BGR
    weights = Path(args.checkpoint).name if args.checkpoint else 'random weights'
    title = f'{args.image.name}: {Path(args.config).stem}, {weights}'
    print(draw_tokens(np.clip(image, 0, 255).astype(np.uint8), trace, args.out, title=title))
    return 0


if __name__ == '__main__':
    sys.exit(main())
