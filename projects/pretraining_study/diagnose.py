r"""Does pre-training learn anything? Targets, trivial predictors and gradients of the checkpoints of a run.

    python projects/pretraining_study/diagnose.py CONFIG CHECKPOINT [CHECKPOINT ...] --images DIR

For every target of the recipe, on masked positions of held-out images:

- *spread*: mean over the channels of the standard deviation of a target over positions and images. Targets that
  collapse have none.
- *within*: fraction of the targets' variance that is within images. Targets that are the same at every position of an
  image have none: then the whole image is known from one visible patch, and nothing of its content has to be found.
- *rank*: effective rank of the targets (the exponential of the entropy of their normalized singular values).
- *loss*, beside that of two predictors that know nothing of the image's content: *mean*, the mean of the targets over
  positions and images, and *copy*, the target of the nearest position that is not masked.
- *gradient*: norm of the gradient of this loss alone, at the stages of the backbone and at the levels of the pyramid.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmitpn.checkpoint import read_checkpoint, unwrap_state_dict
from mmitpn.engine.cli import DictAction
from mmitpn.models.selfsup import ITPNPretrain
from mmitpn.models.selfsup.masking import random_masks, upsample_mask
from mmitpn.models.selfsup.prediction_heads import loss_map
from mmitpn.registry import MODELS

sys.path.insert(0, str(Path(__file__).resolve().parent))
from probe import normalize

PARTS = {
    'stride 4': ('backbone.patch_embed', 'backbone.stage1', 'backbone.merge1'),
    'stride 8': ('backbone.stage2', 'backbone.merge2'),
    'stride 16': ('backbone.pos_embed', 'backbone.blocks', 'backbone.norm'),
    'pyramid': ('neck',),
}


@dataclass
class TargetStatistics:
    """Figures of one target of a checkpoint; see the module's docstring."""

    spread: float
    within: float
    rank: float
    loss: float
    mean: float
    copy: float
    gradients: dict[str, float] = field(default_factory=dict)


def effective_rank(rows: Tensor) -> float:
    """Effective rank of centered rows ``(N, C)`` (Roy and Vetterli, 2007), 1 to C."""
    values = torch.linalg.svdvals(rows - rows.mean(0))
    p = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))


def nearest_visible(masks: Tensor) -> Tensor:
    """For every position of masks ``(B, h, w)`` the index of the nearest one that is not masked, ``(B, h * w)``."""
    _, height, width = masks.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    points = torch.stack((rows, columns), -1).flatten(0, 1).float()
    distance = torch.cdist(points, points)[None].repeat(len(masks), 1, 1)
    distance.masked_fill_(masks.flatten(1)[:, None], float('inf'))
    return distance.argmin(-1)


def copy_prediction(target: Tensor, masks: Tensor) -> Tensor:
    """The target ``(B, H, W, C)`` of each position replaced by that of the nearest visible position."""
    nearest = nearest_visible(masks)
    flat = target.flatten(1, 2)
    return flat.gather(1, nearest[..., None].expand_as(flat)).view_as(target)


def loss_name(model: ITPNPretrain, name: str) -> str:
    """The loss that the head takes for a target."""
    return 'l2' if model.form == 'mfm' and name == 'tokens' else model.head.loss


def diagnose(model: ITPNPretrain, images: Tensor, masks: Tensor) -> dict[str, TargetStatistics]:
    """Figures of every target on normalized images ``(B, 3, H, W)``."""
    model.eval()
    predictions = model.head(model.backbone, model.neck, images, masks)
    with torch.no_grad():
        targets = model.head.targets(model.teacher(images, tuple(masks.shape[1:])), images)
    found = {}
    for name, target in targets.items():
        where = upsample_mask(masks, target.shape[1] // masks.shape[1])
        kind = loss_name(model, name)
        loss = loss_map(kind, predictions[name], target)[where].mean()
        rows = target[where].float()
        trivial = [
            float(loss_map(kind, guess, target)[where].mean())
            for guess in (rows.mean(0).expand_as(target), copy_prediction(target, where))
        ]
        sample = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 4096)).long()]
        found[name] = TargetStatistics(
            spread=float(rows.std(0).mean()),
            within=float(target.flatten(1, 2).var(1).mean() / target.flatten(0, 2).var(0).mean()),
            rank=effective_rank(sample),
            loss=loss.item(),
            mean=trivial[0],
            copy=trivial[1],
            gradients=_gradients(model, loss),
        )
    return found


def _gradients(model: ITPNPretrain, loss: Tensor) -> dict[str, float]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    norms = {
        part: [g.norm() for (name, _), g in zip(named, grads, strict=True) if g is not None and name.startswith(begin)]
        for part, begin in PARTS.items()
    }
    return {part: float(torch.stack(values).norm()) if values else 0.0 for part, values in norms.items()}


def read_images(folder: Path, side: int, number: int) -> Tensor:
    """The first images of a folder, resized, as uint8 ``(N, 3, side, side)`` RGB."""
    files = sorted(folder.iterdir())[:number]
    if not files:
        raise FileNotFoundError(f'{folder} has no images')
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.convert('RGB').resize((side, side), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def build(config: Path, options: Mapping | None) -> ITPNPretrain:
    """The network of a config of pre-training."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(options or {}))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = MODELS.build(cfg.model)
    if not isinstance(model, ITPNPretrain):
        raise TypeError(f'{config} is of a {type(model).__name__}; give a config of pre-training')
    return model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', nargs='+', help="checkpoints of the run in order, or 'random'")
    parser.add_argument('--images', type=Path, required=True, metavar='DIR', help='folder of held-out images')
    parser.add_argument('--number', type=int, default=64, help='of images (default: 64)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write the figures here')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel('ERROR')
    torch.manual_seed(args.seed)
    model = build(args.config, args.cfg_options)
    model.init_weights()
    grid = model.backbone.grid
    images = normalize(read_images(args.images, grid[0] * 16, args.number))
    masks = random_masks(len(images), grid, model.mask_ratio)
    table = Table(title=f'{args.config.stem}, {len(images)} images')
    for heading in ('checkpoint', 'target'):
        table.add_column(heading)
    for heading in ('spread', 'within', 'rank', 'loss', 'mean', 'copy', *(f'grad {part}' for part in PARTS)):
        table.add_column(heading, justify='right')
    found = {}
    for file in args.checkpoint:
        if file != 'random':
            model.load_state_dict(unwrap_state_dict(read_checkpoint(file))[0])
        figures = diagnose(model, images, masks)
        found[Path(file).stem] = {name: asdict(one) for name, one in figures.items()}
        for name, one in figures.items():
            values = (one.spread, one.within, one.rank, one.loss, one.mean, one.copy, *one.gradients.values())
            table.add_row(Path(file).stem, name, *(f'{value:.3g}' for value in values))
    Console(width=150).print(table)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
