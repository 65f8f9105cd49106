"""CLIP's image tower as a teacher, through the transformers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mmitpn.registry import MODELS

from .base import IMAGENET_MEAN, IMAGENET_STD, Teacher, check_grid, renormalize

CLIP_MEAN, CLIP_STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)


@MODELS.register_module()
class ClipTeacher(Teacher):
    """Tokens of CLIP's image tower, in the space that images and texts share.

    Fast-iTPN's teacher is CLIP-L/14, fed at 196 pixels, so that its 14x14 tokens are those of a student at 224: the
    images are resized here. Every patch token is normed and projected as CLIP does with its class token.

    Args:
        weights: Folder with ``config.json`` and ``model.safetensors`` as transformers saves them, or the name of a
            repository of its hub, such as ``'openai/clip-vit-large-patch14'``.
        channels: Channels of its tokens, 768 for CLIP-L/14. Where they are given, the weights are only loaded with
            the model's (``init_weights``); None: at once.
        image_size: Side in pixels that the student's whole image is resized to; None: so that the grids match.
        project: False leaves the last projection out: tokens of the tower's own width.
        student_mean: Mean that the student's images are normalised with, of 0 to 255.
        student_std: Deviation that they are normalised with.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If there are no weights, or the folder has none.
    """

    def __init__(
        self,
        weights: str | None = None,
        *,
        channels: int | None = None,
        image_size: int | None = None,
        project: bool = True,
        student_mean: Sequence[float] = IMAGENET_MEAN,
        student_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not weights:
            raise ValueError(
                "the CLIP teacher has no weights: give weights=FOLDER, or a name: 'openai/clip-vit-large-patch14'"
            )
        folder = Path(weights)
        if folder.is_dir() and not any(folder.glob('*.safetensors')):
            raise ValueError(
                f'{folder} has no *.safetensors: save the model with transformers (save_pretrained), or give another'
                ' folder; pickles are not read'
            )
        self.weights, self.image_size, self.project = weights, image_size, project
        self.student: Mapping[str, Sequence[float]] = {'mean': student_mean, 'std': student_std}
        if channels is None:
            self.load()
        else:
            self.channels = channels

    def load(self) -> None:
        """Load the tower, once."""
        if self.network is not None:
            return
        try:
            from transformers import CLIPVisionModelWithProjection
        except ImportError as error:
            raise ImportError('the CLIP teacher needs transformers: pip install transformers==4.48.3') from error
        tower = CLIPVisionModelWithProjection.from_pretrained(self.weights, use_safetensors=True)
        found = tower.config.projection_dim if self.project else tower.config.hidden_size
        expected = getattr(self, 'channels', found)
        if found != expected:
            raise ValueError(
                f'the CLIP teacher {self.weights} has {found} channels, not {expected}: set channels={found}'
            )
        self.hold(tower)
        self.channels = found

    def see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        patch = self.network.config.patch_size
        size = (self.image_size,) * 2 if self.image_size else tuple(side * patch for side in grid)
        found = [side // patch for side in size]
        check_grid(self.weights, found, grid, f'leave image_size out, or give {grid[0] * patch}')
        x = renormalize(images.float(), self.student, {'mean': CLIP_MEAN, 'std': CLIP_STD})
        x = F.interpolate(x, size=size, mode='bicubic', align_corners=False, antialias=True)
        tower = self.network.vision_model
        tokens = tower(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        tokens = tower.post_layernorm(tokens)
        if self.project:
            tokens = self.network.visual_projection(tokens)
        return tokens.unflatten(1, grid)
