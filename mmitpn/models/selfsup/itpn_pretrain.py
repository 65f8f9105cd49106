"""Integral pre-training: a masked image, backbone and pyramid, and a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmitpn.checkpoint import QuietInit
from mmitpn.registry import MODELS

from .feature_teachers import MovingAverageTeacher
from .masking import check_mask_ratio, count_visible, num_masked, patch_grid, pipeline_masks, random_masks
from .prediction_heads import FeatureHead, PixelHead, TokenHead
from .target_generators import Teacher


class Recipe(NamedTuple):
    """One way of pre-training.

    Attributes:
        head: Class of the prediction head.
        settings: Settings of the head that differ from its defaults.
        teacher: Name of the teacher; None: it has to be given.
    """

    head: type[nn.Module]
    settings: Mapping[str, Any]
    teacher: str | None


CLIP_SETTINGS = {
    'mask_at': 'main',
    'embed': 'places',
    'norm': 'own',
    'loss': 'smooth_l1',
    'masked_only': False,
    'normalize_targets': True,
    'auxiliary': {'depth': 0.75, 'blocks': 2},
}
RECIPES = {
    'fast': Recipe(TokenHead, {}, None),
    'clip': Recipe(TokenHead, CLIP_SETTINGS, None),
    'pixel': Recipe(PixelHead, {}, 'pixels'),
    'mfm': Recipe(FeatureHead, {}, 'moving_average'),
    'hog': Recipe(TokenHead, {'norm': 'own', 'loss': 'l2', 'masked_only': False}, 'hog'),
}
MASKING = ('random', 'pipeline')
# The names that `teacher` takes in place of a config.
TEACHERS = {
    'clip': 'ClipTeacher',
    'hog': 'HogTeacher',
    'moving_average': 'MovingAverageTeacher',
    'pixels': 'PixelTeacher',
    'random': 'RandomTeacher',
}


@MODELS.register_module()
class ITPNPretrain(QuietInit, BaseModel):
    """Pre-trains a backbone together with its pyramid (arXiv 2211.12735, 3.1).

    | ``form`` | masked patches | teacher | loss |
    |---|---|---|---|
    | ``'fast'`` | replaced after the patch embedding | given (CLIP-L/14) | negative cosine, masked patches |
    | ``'clip'`` | replaced before the main stage | given (CLIP-B/16) | two SmoothL1, all patches |
    | ``'pixel'`` | removed | normalized pixels | squared error, masked patches |
    | ``'mfm'`` | replaced after the patch embedding | moving average, pixels | squared error, all patches |
    | ``'hog'`` | replaced after the patch embedding | HOG (FastMIM) | squared error, all patches |

    The first three are those of the released code: Fast-iTPN's, and iTPN's with CLIP and with pixel supervision. 'mfm'
    is the paper's own description, of which no code is public: see :class:`FeatureHead` for our interpretation (pixels
    count where they are masked). 'hog' has FastMIM's targets (arXiv 2212.06593), for small images; FastMIM counts
    masked patches only, but then a pyramid's lateral connections see only the mask token.

    Args:
        backbone: Config of a FastITPN or ITPN with all three maps.
        neck: Config of an ITPNPyramid with the three levels at strides 4, 8, 16 (``num_outs=3``).
        form: Name of the recipe, see the table.
        teacher: Config of a teacher, or the name of one that needs no settings: ``'pixels'``, ``'hog'``,
            ``'moving_average'``, and ``'random'`` for tests. None: that of the recipe; 'fast' and 'clip' have none.
        masking: ``'random'``: ``mask_ratio`` of the patches, the same number in every image; ``'pipeline'``: the masks
            that mmpretrain's mask generators made (``BEiTMaskGenerator`` masks by blocks).
        mask_ratio: Fraction of masked patches, for ``masking='random'``.
        head: More settings of the recipe's head (:class:`TokenHead`, :class:`PixelHead`, :class:`FeatureHead`).
        data_preprocessor: As in mmpretrain; None: images come normalized.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If settings do not fit together; the message says what is allowed.
    """

    def __init__(
        self,
        backbone: Mapping | nn.Module,
        neck: Mapping | nn.Module,
        *,
        form: str = 'fast',
        teacher: str | Mapping | Teacher | None = None,
        masking: str = 'random',
        mask_ratio: float = 0.4,
        head: Mapping | None = None,
        data_preprocessor: Mapping | nn.Module | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        if isinstance(data_preprocessor, Mapping):
            data_preprocessor = {'type': 'mmpretrain.SelfSupDataPreprocessor', **data_preprocessor}
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if form not in RECIPES:
            raise ValueError(f'form is {form!r}; allowed: {", ".join(map(repr, RECIPES))}')
        if masking not in MASKING:
            raise ValueError(f'masking is {masking!r}; allowed: {", ".join(map(repr, MASKING))}')
        self.form, self.masking, self.mask_ratio = form, masking, check_mask_ratio(mask_ratio)
        self.backbone = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        self.neck = neck if isinstance(neck, nn.Module) else MODELS.build(neck)
        if tuple(self.neck.strides) != (4, 8, 16):
            raise ValueError(
                f'the neck gives strides {tuple(self.neck.strides)}; pre-training needs 4, 8, 16: num_outs=3,'
                ' start_level=0'
            )
        recipe = RECIPES[form]
        self.teacher = self._build_teacher(recipe.teacher if teacher is None else teacher)
        needed = recipe.head.target_type
        if self.teacher.target_type != needed:
            raise ValueError(
                f'the teacher {type(self.teacher).__name__} gives {self.teacher.target_type}, but form={form!r} learns'
                f' from {needed}: use'
                + (" teacher='moving_average'" if needed == 'maps' else " another teacher, or form='mfm'")
            )
        settings = {**recipe.settings, **(head or {})}
        self.head = recipe.head(self.backbone, self.neck, self.teacher.channels, **settings)
        if isinstance(self.teacher, MovingAverageTeacher):
            self.teacher.copy_weights(self.backbone)  # the head may have changed its position embedding

    def _build_teacher(self, teacher: str | Mapping | Teacher | None) -> Teacher:
        if teacher is None:
            raise ValueError(
                f'form={self.form!r} needs a teacher: teacher=dict(type="mmitpn.ClipTeacher", weights=FOLDER), or'
                " 'random' for tests"
            )
        if isinstance(teacher, str):
            if teacher not in TEACHERS:
                raise ValueError(f'teacher is {teacher!r}; allowed: {", ".join(map(repr, TEACHERS))}, or a config')
            teacher = {'type': f'mmitpn.{TEACHERS[teacher]}'}
        built = teacher if isinstance(teacher, Teacher) else MODELS.build(dict(teacher))
        if not isinstance(built, Teacher):
            raise TypeError(
                f'the teacher is a {type(built).__name__}; wrap a network: dict(type="mmitpn.FeatureTeacher")'
            )
        built.setup(self.backbone)
        return built

    def init_weights(self) -> None:
        """Apply ``init_cfg`` of the parts; a moving average then starts from the backbone's weights."""
        super().init_weights()
        if isinstance(self.teacher, MovingAverageTeacher):
            self.teacher.copy_weights(self.backbone)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor'
    ) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """The entry of mmengine's runner.

        Args:
            inputs: Normalized images ``(B, 3, H, W)``; for ``'loss'`` with sides that are multiples of 16.
            data_samples: One per image; with ``masking='pipeline'`` they have ``mask``.
            mode: ``'loss'``, or ``'tensor'``: the pyramid's levels of the whole images.

        Returns:
            Losses by name, or the levels ``(B, F, ceil(H / s), ceil(W / s))`` with stride s = 4, 8, 16.

        Raises:
            ValueError: If ``mode`` is another one, such as ``'predict'``; or, for ``'loss'``, if a side is not a
                multiple of 16.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            return self.neck(self.backbone(inputs))
        raise ValueError(f"mode is {mode!r}; allowed: 'loss', 'tensor'")

    def loss(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> dict[str, Tensor]:
        """Losses of a batch; see :meth:`forward`."""
        if self.training:
            self.teacher.update(self.backbone)
        masks, counts = self._masks(inputs, data_samples)
        given = self.teacher(inputs, tuple(masks.shape[1:]))
        predictions = self.head(self.backbone, self.neck, inputs, masks, counts)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.head.losses(predictions, self.head.targets(given, inputs), masks)

    def masks(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> Tensor:
        """Which patches are masked, ``(B, h, w)``, True where one is."""
        return self._masks(inputs, data_samples)[0]

    def _masks(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> tuple[Tensor, list[int]]:
        """The masks on the device of the images, and how many patches of each image they leave."""
        grid = patch_grid(inputs)
        if self.masking == 'pipeline':
            masks = pipeline_masks(data_samples, grid)
            return masks.to(inputs.device, non_blocking=True), count_visible(masks)
        masks = random_masks(len(inputs), grid, self.mask_ratio, inputs.device)
        return masks, [grid[0] * grid[1] - num_masked(grid, self.mask_ratio)] * len(inputs)

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, masks: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions and targets of images, for visualization.

        Args:
            inputs: Normalized images ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.

        Returns:
            Both by name, channels last.
        """
        given = self.teacher(inputs, tuple(masks.shape[1:]))
        return self.head(self.backbone, self.neck, inputs, masks), self.head.targets(given, inputs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay; those of neck and head are in the last layer."""
        return self.backbone.get_layer_depth(param_name, f'{prefix}backbone.')
