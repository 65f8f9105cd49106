"""Outputs of the operators on boxes of a compiled mmcv 2.3.6, which tests/ops compares with.

    python tests/data/ops/make_boxes.py

writes boxes.npz beside this file. The inputs come from seeds, so that only outputs are stored. The operators that a
compiled mmcv has on the CPU are run: nms, softnms, nms_match, bbox_overlaps, box_iou_rotated, nms_rotated and
roi_align_rotated, in float32.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

FILE = Path(__file__).with_name('boxes.npz')


def generator(seed: int) -> torch.Generator:
    """A generator whose numbers are the same in all releases of torch."""
    return torch.Generator().manual_seed(seed)


def boxes(seed: int, number: int, *, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes ``(N, 4)`` and scores ``(N,)``: even seeds on whole pixels, with equal boxes and boxes of size 0.

    ``ties`` makes equal scores, whose order after ``Tensor.sort`` depends on the processor.
    """
    random = generator(seed)
    corner, size = torch.rand(number, 2, generator=random) * 120, torch.rand(number, 2, generator=random) * 50
    scores = torch.rand(number, generator=random)
    corners = torch.cat((corner, corner + size), 1)
    if seed % 2 == 0:
        corners = corners.round()
        corners[::5, 2:] = corners[::5, :2]
        corners[number // 2 :][: number // 4] = corners[: number // 4]
    return corners, (scores * 16).round() / 16 if ties else scores


def rotated_boxes(seed: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes ``(N, 5)`` and scores ``(N,)``: even seeds with edges that coincide, every third seed tiny."""
    random = generator(seed)
    places = torch.rand(number, 4, generator=random) * torch.tensor([50.0, 50.0, 40.0, 20.0])
    angle = (torch.rand(number, 1, generator=random) - 0.5) * 7
    scores = torch.rand(number, generator=random)
    if seed % 2 == 0:
        places, angle = places.round(), (angle / math.pi * 4).round() * (math.pi / 4)
        places[number // 2 :][: number // 4] = places[: number // 4]
        angle[number // 2 :][: number // 4] = angle[: number // 4]
    if seed % 3 == 0:
        places = places / 1000
    return torch.cat((places, angle), 1), scores


def run_nms(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Kept indices for both offsets and some thresholds."""
    corners, scores = boxes(seed, number)
    return [
        ext.nms(corners, scores, iou_threshold=threshold, offset=offset)
        for offset in (0, 1)
        for threshold in (0.0, 0.3, 0.5, 0.7)
    ]


def run_softnms(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Picked boxes with their new scores, and their indices, for both offsets and all methods."""
    corners, scores = boxes(seed, number, ties=seed % 2 == 0)
    out = []
    for offset in (0, 1):
        for method in (0, 1, 2):
            dets = torch.zeros(number, 5)
            index = ext.softnms(
                corners, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.1, method=method, offset=offset
            )
            out += [dets[: len(index)], index]
    return out


def run_nms_match(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """The groups, one after the other, and their sizes."""
    dets = torch.cat([part.view(number, -1) for part in boxes(seed, number)], 1)
    groups = ext.nms_match(dets, iou_threshold=0.5)
    return [torch.tensor([i for group in groups for i in group]), torch.tensor([len(group) for group in groups])]


def run_bbox_overlaps(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Overlaps for both modes and offsets, of all pairs and of aligned ones."""
    first, second = boxes(seed, number)[0], boxes(seed + 100, number)[0]
    out = []
    for aligned in (False, True):
        for mode in (0, 1):
            for offset in (0, 1):
                out.append(first.new_zeros((number,) if aligned else (number, number)))
                ext.bbox_overlaps(first, second, out[-1], mode=mode, aligned=aligned, offset=offset)
    return out


def run_box_iou_rotated(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Overlaps for both modes, of all pairs and of aligned ones; a box is compared with itself, too."""
    first = rotated_boxes(seed, number)[0]
    second = torch.cat((first[: number // 3], rotated_boxes(seed + 6, number - number // 3)[0]))
    out = []
    for aligned in (False, True):
        for mode in (0, 1):
            out.append(first.new_zeros(number if aligned else number * number))
            ext.box_iou_rotated(first, second, out[-1], mode_flag=mode, aligned=aligned)
    return out


def run_nms_rotated(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Kept indices for some thresholds, without and with labels."""
    dets, scores = rotated_boxes(seed, number)
    order = scores.sort(descending=True)[1]
    none, labels = torch.zeros(0, dtype=torch.int), torch.arange(number) % 3
    labeled = torch.cat((dets, labels[:, None]), 1)
    return [ext.nms_rotated(dets, scores, order, dets[order], none, threshold, 0) for threshold in (0.1, 0.5)] + [
        ext.nms_rotated(labeled, scores, order, labeled[order], labels, 0.3, 1)
    ]


def roi_align_inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, object]]:
    """Features, rotated boxes, gradient of the output, settings; some boxes are outside the features or empty."""
    random = generator(seed)
    bins = (2, 3) if seed % 2 else (3, 1)
    features = torch.randn(2, 3, 9, 13, generator=random)
    rois = torch.rand(6, 5, generator=random) * torch.tensor([26.0, 18.0, 24.0, 16.0, 7.0]) - 1
    rois[:, 2:4].clamp_(min=0)
    rois[5, :2] = -90
    rois = torch.cat((torch.tensor([0.0, 1, 1, 0, 1, 0])[:, None], rois), 1)
    settings = {
        'pooled_height': bins[0],
        'pooled_width': bins[1],
        'spatial_scale': (1.0, 0.5, 0.3)[seed % 3],
        'sampling_ratio': (0, 2, 0, 1)[seed % 4],
        'aligned': seed % 3 != 1,
        'clockwise': seed % 5 > 2,
    }
    return features, rois, torch.randn(6, 3, *bins, generator=random), settings


def run_roi_align_rotated(ext: ModuleType, seed: int, number: int) -> list[torch.Tensor]:
    """Output and gradient of the features."""
    features, rois, grad, settings = roi_align_inputs(seed)
    output, grad_input = torch.zeros_like(grad), torch.zeros_like(features)
    ext.roi_align_rotated_forward(features, rois, output, **settings)
    ext.roi_align_rotated_backward(grad, rois, grad_input, *settings.values())
    return [output, grad_input]


RUNS = {
    'nms': run_nms,
    'softnms': run_softnms,
    'nms_match': run_nms_match,
    'bbox_overlaps': run_bbox_overlaps,
    'box_iou_rotated': run_box_iou_rotated,
    'nms_rotated': run_nms_rotated,
    'roi_align_rotated': run_roi_align_rotated,
}
NUMBERS = (1, 7, 40, 40, 13, 41, 24, 25)  # boxes of the seeds 0, 1, ...


def main() -> None:
    """Run the compiled operators and store their outputs."""
    from mmcv import _ext

    arrays = {}
    for name, run in RUNS.items():
        for seed, number in enumerate(NUMBERS):
            for position, value in enumerate(run(_ext, seed, number)):
                array = value.numpy()
                arrays[f'{name}/{seed}/{position}'] = array.astype(np.int16) if array.dtype == np.int64 else array
    np.savez_compressed(FILE, **arrays)
    print(f'{FILE}: {len(arrays)} arrays, {FILE.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
    main()
