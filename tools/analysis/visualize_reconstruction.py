r"""Draw what pre-training makes of masked images: reconstructed pixels, or how far predictions are from the teacher.

    python tools/analysis/visualize_reconstruction.py IMAGE [IMAGE ...] --config CONFIG --checkpoint FILE

CONFIG is one of configs/pretrain or of the quick start's pre-training; FILE a checkpoint of it. Images are resized to
the size it was trained at. Pixels are normalized patch by patch where the recipe predicts them so: each patch is drawn
with its own mean and deviation, as is usual. Masked patches show the prediction, the others the image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from PIL import Image
from torch import Tensor

from mmitpn.checkpoint import read_checkpoint, unwrap_state_dict
from mmitpn.checkpoint.diagnostics import some
from mmitpn.engine.checkpointing import compare_weights
from mmitpn.engine.cli import DictAction
from mmitpn.models.selfsup import ITPNPretrain
from mmitpn.models.selfsup.masking import PATCH_SIZE, patchify, random_masks, unpatchify
from mmitpn.models.selfsup.prediction_heads import loss_map
from mmitpn.models.selfsup.target_generators import PIXEL_CHANNELS, patch_statistics
from mmitpn.registry import MODELS
from mmitpn.visualization.image_grid import AnnotatedImage, draw_image_grid, save_figure

GRAY = 110  # brightness of a masked patch


class Reconstruction(NamedTuple):
    """An image, its masked pixels, and what the network makes of it.

    Attributes:
        image: RGB, uint8 ``(H, W, 3)``.
        mask: Which pixels are masked, bool ``(H, W)``.
        pixels: The reconstructed image, as ``image``; None where no pixels are predicted.
        distances: Name of a target -> how far the prediction is from it at every position, ``(h, w)``.
    """

    image: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray | None
    distances: dict[str, np.ndarray]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', nargs='+', type=Path, help='image files')
    parser.add_argument('--config', required=True, help='config file')
    parser.add_argument('--checkpoint', help='weights; without them the images show what random weights do')
    parser.add_argument('--mask-ratio', type=float, help="fraction of masked patches (default: the config's)")
    parser.add_argument('--seed', type=int, default=0, help='of the masks')
    parser.add_argument('--out', type=Path, default=Path('reconstruction.png'), metavar='FILE.png')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def read(path: Path, side: int) -> np.ndarray:
    """An image of ``side`` pixels, RGB, 8 bits."""
    if not path.is_file():
        raise FileNotFoundError(f'no image {path}')
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB').resize((side, side), Image.Resampling.BICUBIC))


def build(args: argparse.Namespace) -> ITPNPretrain:
    """The network with its weights."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = MODELS.build(cfg.model)
    if not isinstance(model, ITPNPretrain):
        raise TypeError(f'{args.config} is of a {type(model).__name__}; give a config of configs/pretrain')
    if args.checkpoint:
        weights, _ = unwrap_state_dict(read_checkpoint(args.checkpoint))
        wrong, total = compare_weights(model, weights)
        if wrong:
            raise ValueError(
                f'{args.checkpoint} does not fit {args.config}: {len(wrong)} of {total} parameters'
                f' ({some([str(misfit) for misfit in wrong])})'
            )
        load_state_dict(model, weights)
    return model.eval()


def look(model: ITPNPretrain, images: list[np.ndarray], ratio: float, seed: int) -> list[Reconstruction]:
    """What the network makes of the images."""
    raw = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images])
    bgr = raw.flip(1)  # the frameworks' pipelines load BGR
    inputs = model.data_preprocessor({'inputs': bgr, 'data_samples': None}, False)['inputs']
    torch.manual_seed(seed)
    grid = (inputs.shape[-2] // PATCH_SIZE, inputs.shape[-1] // PATCH_SIZE)
    masks = random_masks(len(inputs), grid, ratio)
    predictions, targets = model.reconstruct(inputs, masks)
    hidden = masks.repeat_interleave(PATCH_SIZE, 1).repeat_interleave(PATCH_SIZE, 2).numpy()
    pixels = None
    distances = {}
    for name, target in targets.items():
        if name == 'tokens' and target.shape[-1] == PIXEL_CHANNELS and model.form in ('pixel', 'mfm'):
            pixels = reconstructed(raw, predictions[name], masks)
        else:
            loss = 'cosine' if getattr(model.head, 'loss', '') == 'cosine' else 'l2'
            values = loss_map(loss, predictions[name], target) + (1.0 if loss == 'cosine' else 0.0)
            distances[f'{name}: {"1 - cosine" if loss == "cosine" else "squared error"}'] = values
    return [
        Reconstruction(
            image,
            hidden[i],
            None if pixels is None else pixels[i],
            {name: values[i].numpy() for name, values in distances.items()},
        )
        for i, image in enumerate(images)
    ]


def reconstructed(raw: Tensor, prediction: Tensor, masks: Tensor) -> np.ndarray:
    """Masked patches as predicted, with the image's own mean and deviation of each patch."""
    patches = patchify(raw.float())
    mean, deviation = patch_statistics(patches)
    # The normalization of the three channels is linear and nearly the same: it is left out.
    filled = torch.where(masks[..., None], prediction * deviation + mean, patches)
    return unpatchify(filled).permute(0, 2, 3, 1).clamp(0, 255).byte().numpy()


def draw_reconstructions(found: list[Reconstruction], out_file: Path, *, title: str) -> Path:
    """Draw an image per row: input, what is not masked, reconstruction, distances (of the same scale in all rows)."""
    largest = {name: max(float(one.distances[name].max()) for one in found) or 1.0 for name in found[0].distances}
    panels = []
    for one in found:
        panels.append(AnnotatedImage(one.image, 'input'))
        panels.append(AnnotatedImage(np.where(one.mask[..., None], np.uint8(GRAY), one.image), 'visible'))
        if one.pixels is not None:
            panels.append(AnnotatedImage(one.pixels, 'reconstruction'))
        for name, values in one.distances.items():
            colored = colormaps['viridis'](values / largest[name], bytes=True)[..., :3]
            panels.append(AnnotatedImage(colored, f'{name}, 0 (dark) to {largest[name]:.3g}'))
    return save_figure(draw_image_grid(panels, columns=len(panels) // len(found), tile=280, title=title), out_file)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        model = build(args)
        side = model.backbone.grid[0] * PATCH_SIZE
        images = [read(path, side) for path in args.image]
        found = look(model, images, args.mask_ratio or model.mask_ratio, args.seed)
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    weights = Path(args.checkpoint).name if args.checkpoint else 'random weights'
    print(draw_reconstructions(found, args.out, title=f'{Path(args.config).stem}, {weights}'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
