"""The tensor part of a model as a module that is exported: normalized images and padding in, named results out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from mmitpn.models.backbones.fast_itpn import STRIDES
from mmitpn.models.mask_dino_postprocess import LayerOutputs, segmentation_scores
from mmitpn.models.token_reduction.reduction import TokenReduction

SUPPORTED = 'mmitpn.DINO, mmitpn.MaskDINO, segmentors of mmseg, classifiers of mmpretrain, and features of any backbone'


class ExportGraph(nn.Module):
    """A model with tensors as inputs and outputs.

    Attributes:
        task: See :class:`~mmitpn.deploy.metadata.ExportInfo`.
        model: The model.
        output_names: Names of the outputs; known before a call except those of features.
        has_padding_mask: Whether the second input is ``padding_mask``.
    """

    task = ''
    output_names: tuple[str, ...] = ()
    has_padding_mask = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return ('images', 'padding_mask') if self.has_padding_mask else ('images',)

    @property
    def window(self) -> int:
        """Side in pixels of the windows of token gathering, whose multiples a file for any size takes; 1 without."""
        sides = [
            part.gathering.window_size * STRIDES[-1]
            for part in self.modules()
            if isinstance(part, TokenReduction) and part.gathering is not None
        ]
        return math.lcm(*sides) if sides else 1

    def count_positions(self, images: Tensor) -> tuple[int, int]:
        """Positions of the encoder for such images, and the number of queries that are selected from them."""
        del images
        return 1, 0


class DINOGraph(ExportGraph):
    """DINO: scores, highest first, and labels ``(B, M)``, boxes ``(B, M, 4)`` x1, y1, x2, y2 in pixels of the input."""

    task = 'detection'
    output_names = ('scores', 'labels', 'boxes')
    has_padding_mask = True

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        logits, boxes = self.model.forward_tensors(images, padding_mask)
        scores, labels, boxes = self.model.bbox_head.select(logits, boxes)
        valid = torch.stack(((~padding_mask[:, 0]).sum(1), (~padding_mask[:, :, 0]).sum(1)), -1)  # width, height
        return scores, labels, boxes * valid.to(boxes.dtype).repeat(1, 2)[:, None]

    def count_positions(self, images: Tensor) -> tuple[int, int]:
        """See the base class."""
        maps = self.model.extract_feat(images)
        return sum(one[0, 0].numel() for one in maps), self.model.num_queries


class MaskDINOGraph(ExportGraph):
    """MaskDINO's queries: class logits ``(B, Q, K)``, boxes ``(B, Q, 4)`` as of :class:`DINOGraph`, mask logits."""

    task = 'queries'
    output_names = ('logits', 'boxes', 'masks')
    has_padding_mask = True

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class; the masks are ``(B, Q, H / 4, W / 4)``."""
        outputs = self.model.forward_tensors(images, padding_mask)
        height, width = images.shape[2:]
        sizes = torch.cat([torch.full((1,), side, dtype=torch.float32) for side in (width, height)]).repeat(2)
        return outputs.logits, box_convert(outputs.boxes, 'cxcywh', 'xyxy') * sizes, outputs.masks()

    def count_positions(self, images: Tensor) -> tuple[int, int]:
        """See the base class."""
        head = self.model.panoptic_head
        _, levels = head.pixel_decoder(self.model.extract_feat(images), None)
        queries = head.predictor.num_queries if head.predictor.two_stage else 0
        return sum(one[0, 0].numel() for one in levels), queries


class SegmentorGraph(ExportGraph):
    """A segmentor: class logits ``(B, K, h, w)`` of its decode head, usually of stride 4."""

    task = 'segmentation'
    output_names = ('logits',)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.model(images, mode='tensor')


class QuerySegmentorGraph(ExportGraph):
    """A segmentor with MaskDINO's decode head: class scores ``(B, Q, K)`` and mask logits ``(B, Q, H / 4, W / 4)``."""

    task = 'query_segmentation'
    output_names = ('class_scores', 'masks')

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        outputs: LayerOutputs = self.model(images, mode='tensor')
        head = self.model.decode_head
        return segmentation_scores(outputs.logits, head.num_classes, head.temperature), outputs.masks()

    def count_positions(self, images: Tensor) -> tuple[int, int]:
        """See the base class."""
        head = self.model.decode_head
        _, levels = head.pixel_decoder(self.model.extract_feat(images), None)
        queries = head.predictor.num_queries if head.predictor.two_stage else 0
        return sum(one[0, 0].numel() for one in levels), queries


class ClassifierGraph(ExportGraph):
    """A classifier: probabilities ``(B, K)``."""

    task = 'classification'
    output_names = ('probabilities',)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.model(images, mode='tensor').softmax(-1)


class FeatureGraph(ExportGraph):
    """Backbone and pyramid: a map ``(B, C_i, H_i, W_i)`` of each level, finest first."""

    task = 'features'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.backbone = model.backbone if hasattr(model, 'backbone') else model
        self.neck = getattr(model, 'neck', None)
        del self.model  # its head is not exported

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        maps = self.backbone(images)
        maps = maps if self.neck is None else self.neck(maps)
        self.output_names = tuple(f'feature_{index}' for index in range(len(maps)))
        return tuple(maps)


def build_graph(model: nn.Module, *, features: bool = False) -> ExportGraph:
    """The exported part of a model, which is not copied.

    Args:
        model: A detector, segmentor or classifier; with ``features`` also a backbone.
        features: Backbone and pyramid instead of the whole model.

    Raises:
        ValueError: If models of this kind cannot be exported.
    """
    if features:
        return FeatureGraph(model)
    bases = {cls.__name__ for cls in type(model).__mro__}
    if hasattr(model, 'forward_tensors'):
        return DINOGraph(model) if hasattr(model, 'bbox_head') else MaskDINOGraph(model)
    if 'EncoderDecoder' in bases and not isinstance(model.decode_head, nn.ModuleList):
        return QuerySegmentorGraph(model) if hasattr(model.decode_head, 'forward_tensors') else SegmentorGraph(model)
    if 'ImageClassifier' in bases and getattr(model, 'head', None) is not None:
        return ClassifierGraph(model)
    raise ValueError(f'{type(model).__name__} cannot be exported; supported: {SUPPORTED} (--features)')


# --- what is exchanged for the export ---------------------------------------------------------------------------------


class MatrixPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for maps of any size in one graph.

    Args:
        output_size: Height and width of the result.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size if isinstance(output_size, tuple) else (output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., H, W)`` to ``(..., output_size)``."""
        rows, columns = (
            _average_weights(side if bins is None else bins, side, x)
            for bins, side in zip(self.output_size, x.shape[-2:], strict=True)
        )
        return rows @ x @ columns.T


def _average_weights(bins: int, side: int, like: Tensor) -> Tensor:
    """Weights ``(bins, side)`` of the averages of ``bins`` ranges, from floor to ceil as ``AdaptiveAvgPool2d``."""
    index = torch.arange(bins, device=like.device)[:, None]
    cells = torch.arange(side, device=like.device)
    first, last = index * side // bins, ((index + 1) * side + bins - 1) // bins
    return ((cells >= first) & (cells < last)).to(like.dtype) / (last - first)


@contextmanager
def exchanged_for_export(graph: ExportGraph, *, dynamic: bool, grid_sample: str) -> Iterator[ExportGraph]:
    """A graph whose modules can be traced; those of ``graph`` itself are as before afterwards.

    Args:
        graph: The graph.
        dynamic: Whether sizes stay free.
        grid_sample: ``native`` or ``gather``, see
            :class:`~mmitpn.models.dino.deformable_attention.MultiScaleDeformableAttention`.
    """
    undo: list[Callable[[], Any]] = []
    for module in list(graph.modules()):
        if hasattr(type(module), 'export_sampling'):
            undo.append(lambda module=module, before=module.export_sampling: setattr(module, 'export_sampling', before))
            module.export_sampling = grid_sample
        for name, child in list(module.named_children()):
            if dynamic and isinstance(child, nn.AdaptiveAvgPool2d):
                undo.append(lambda module=module, name=name, child=child: setattr(module, name, child))
                setattr(module, name, MatrixPool2d(deepcopy(child.output_size)))
    try:
        yield graph
    finally:
        for one in undo:
            one()
