"""Outputs and gradients of compiled mmcv, for the operators that sample maps and have a CPU kernel.

Run with a Python whose mmcv was compiled (mmcv 2.3.6 made the stored file)::

    python tests/data/ops/make_sampling.py

Inputs come from seeds, so that only results are stored. The tests call :func:`run` with ``mmitpn.ops``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORED = Path(__file__).with_name('sampling.npz')


def draws(name: str):
    """Random numbers of a case: NumPy's legacy generator, whose stream never changes."""
    return np.random.RandomState(sum(map(ord, name)))


def normal(random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed values."""
    return torch.from_numpy(random.standard_normal(shape)).to(dtype)


def boxes(random, count: int, batch: int, height: int, width: int, scale: float) -> Tensor:
    """Boxes ``(count, 5)`` in and around maps of this size; the first has integers, the second no area."""
    corner = (random.uniform(size=(count, 2)) * 1.3 - 0.15) * [width, height]
    far = corner + random.uniform(size=(count, 2)) * [width, height]
    rois = np.concatenate([random.randint(0, batch, (count, 1)), corner / scale, far / scale], 1)
    rois[:1, 1:] = rois[:1, 1:].round()
    rois[1:2, 3:] = rois[1:2, 1:3]
    return torch.from_numpy(rois).float()


def roi_align(ext: Any, name: str, **case: Any) -> dict[str, Tensor]:
    """Forward and backward of RoIAlign."""
    random = draws(name)
    (batch, channels, height, width), pooled = case['shape'], case['pooled']
    maps = normal(random, *case['shape'], dtype=case.get('dtype', torch.float32))
    rois = boxes(random, case.get('count', 6), batch, height, width, case['scale']).to(maps.dtype)
    output = maps.new_zeros(len(rois), channels, *pooled)
    maximum = case['mode'] == 0
    argmax = [maps.new_zeros(output.shape if maximum else 0) for _ in range(2)]
    settings = {
        'aligned_height': pooled[0],
        'aligned_width': pooled[1],
        'spatial_scale': case['scale'],
        'sampling_ratio': case['ratio'],
        'pool_mode': case['mode'],
        'aligned': case['aligned'],
    }
    ext.roi_align_forward(maps, rois, output, *argmax, **settings)
    gradient, grad = torch.zeros_like(maps), normal(random, *output.shape, dtype=maps.dtype)
    ext.roi_align_backward(grad, rois, *argmax, gradient, **settings)
    results = {'output': output, 'gradient': gradient}
    return results | ({'y': argmax[0], 'x': argmax[1]} if maximum else {})


def convolution(name: str, case: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs of both deformable convolutions, and the settings by torchvision's names."""
    random, dtype = draws(name), case.get('dtype', torch.float32)
    batch, channels, height, width = case['shape']
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (case[key] for key in ('kernel', 'stride', 'padding', 'dilation'))
    groups, deform_groups = case['groups']
    size = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    maps = normal(random, *case['shape'], dtype=dtype)
    weight = normal(random, case['out'], channels // groups, kh, kw, dtype=dtype)
    offset = normal(random, batch, deform_groups * kh * kw * 2, *size, dtype=dtype) * case['spread']
    if case.get('integers'):
        offset = offset.round()
    mask = torch.from_numpy(random.uniform(size=(batch, deform_groups * kh * kw, *size))).to(dtype)
    return maps, weight, offset, mask, normal(random, batch, case['out'], *size, dtype=dtype), random


def deform_conv(ext: Any, name: str, **case: Any) -> dict[str, Tensor]:
    """Forward and both backwards of deformable convolution."""
    maps, weight, offset, _, grad, _ = convolution(name, case)
    empty = functools.partial(maps.new_empty, 0)
    settings = dict(zip(('kH', 'kW', 'dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW'), numbers(case), strict=True))
    settings |= {'group': case['groups'][0], 'deformable_group': case['groups'][1], 'im2col_step': case['step']}
    output = torch.empty_like(grad)
    ext.deform_conv_forward(maps, weight, offset, output, empty(), empty(), **settings)
    of_maps, of_offset, of_weight = (torch.zeros_like(tensor) for tensor in (maps, offset, weight))
    ext.deform_conv_backward_input(maps, offset, grad.clone(), of_maps, of_offset, weight, empty(), **settings)
    ext.deform_conv_backward_parameters(
        maps, offset, grad.clone(), of_weight, empty(), empty(), **settings, scale=case.get('scale', 1)
    )
    return {'output': output, 'maps': of_maps, 'offset': of_offset, 'weight': of_weight}


def modulated_deform_conv(ext: Any, name: str, **case: Any) -> dict[str, Tensor]:
    """Forward and backward of modulated deformable convolution."""
    maps, weight, offset, mask, grad, random = convolution(name, case)
    empty, with_bias = functools.partial(maps.new_empty, 0), case.get('bias', True)
    bias = normal(random, case['out'], dtype=maps.dtype) if with_bias else empty()
    keys = ('kernel_h', 'kernel_w', 'stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    settings = dict(zip(keys, numbers(case), strict=True))
    settings |= {'group': case['groups'][0], 'deformable_group': case['groups'][1], 'with_bias': with_bias}
    output = torch.empty_like(grad)
    ext.modulated_deform_conv_forward(maps, weight, bias, empty(), offset, mask, output, empty(), **settings)
    gradients = [torch.zeros_like(tensor) for tensor in (maps, weight, bias, offset, mask)]
    ext.modulated_deform_conv_backward(
        maps, weight, bias, empty(), offset, mask, empty(), *gradients, grad.clone(), **settings
    )
    results = dict(zip(('maps', 'weight', 'bias', 'offset', 'mask'), gradients, strict=True))
    return {'output': output} | results


def numbers(case: dict[str, Any]) -> tuple[int, ...]:
    """Kernel, stride, padding and dilation, height before width."""
    return (*case['kernel'], *case['stride'], *case['padding'], *case['dilation'])


def psamask(ext: Any, name: str, **case: Any) -> dict[str, Tensor]:
    """Forward and backward of the masks of PSANet."""
    random = draws(name)
    batch, (h_mask, w_mask), (height, width) = case['batch'], case['mask'], case['size']
    masks = normal(random, batch, h_mask * w_mask, height, width)
    settings = {
        'psa_type': case['type'],
        'num_': batch,
        'h_feature': height,
        'w_feature': width,
        'h_mask': h_mask,
        'w_mask': w_mask,
        'half_h_mask': (h_mask - 1) // 2,
        'half_w_mask': (w_mask - 1) // 2,
    }
    output, gradient = masks.new_zeros(batch, height * width, height, width), torch.zeros_like(masks)
    ext.psamask_forward(masks, output, **settings)
    ext.psamask_backward(normal(random, *output.shape), gradient, **settings)
    return {'output': output, 'gradient': gradient}


PLAIN = {'kernel': (3, 3), 'stride': (1, 1), 'padding': (1, 1), 'dilation': (1, 1), 'groups': (1, 1), 'step': 2}
SHAPE = {'shape': (2, 4, 6, 7), 'out': 3, 'spread': 0.7}
UNEVEN = {'kernel': (2, 3), 'stride': (2, 1), 'padding': (1, 2), 'dilation': (2, 1)}
ALIGN = {'shape': (2, 3, 9, 12), 'pooled': (3, 4), 'scale': 0.25, 'ratio': 2, 'mode': 1, 'aligned': True}
MASKS = {'batch': 2, 'size': (3, 4)}

CASES = {
    'roi_align': {
        'aligned': ALIGN,
        'legacy': ALIGN | {'aligned': False},
        'adaptive': ALIGN | {'ratio': 0, 'scale': 1 / 3},
        'adaptive-legacy': ALIGN | {'ratio': 0, 'aligned': False, 'pooled': (2, 1)},
        'adaptive-fp64': ALIGN | {'ratio': 0, 'scale': 0.1, 'dtype': torch.float64},
        'fp64': ALIGN | {'dtype': torch.float64},
        'fp16': ALIGN | {'dtype': torch.float16, 'scale': 1.0},
        'maximum': ALIGN | {'mode': 0},
        'maximum-adaptive': ALIGN | {'mode': 0, 'ratio': 0, 'scale': 1.0, 'aligned': False},
        'one-cell': ALIGN | {'shape': (1, 2, 1, 1), 'scale': 1.0},
        'no-boxes': ALIGN | {'count': 0},
    },
    'deform_conv': {
        'plain': PLAIN | SHAPE,
        'zero-offsets': PLAIN | SHAPE | {'spread': 0.0},
        'integer-offsets': PLAIN | SHAPE | {'spread': 2.0, 'integers': True},
        'far': PLAIN | SHAPE | {'spread': 6.0, 'step': 1, 'scale': 0.5},
        'uneven': PLAIN | SHAPE | UNEVEN,
        'groups': PLAIN | SHAPE | {'groups': (2, 4), 'out': 6},
        'fp64': PLAIN | SHAPE | {'dtype': torch.float64, 'groups': (2, 1), 'out': 2},
        'fp16': PLAIN | SHAPE | {'dtype': torch.float16},
    },
    'modulated_deform_conv': {
        'plain': PLAIN | SHAPE,
        'zero-offsets': PLAIN | SHAPE | {'spread': 0.0},
        'uneven-without-bias': PLAIN | SHAPE | UNEVEN | {'bias': False},
        'groups': PLAIN | SHAPE | {'groups': (2, 4), 'out': 6, 'spread': 3.0},
        'fp64': PLAIN | SHAPE | {'dtype': torch.float64},
        'fp16': PLAIN | SHAPE | {'dtype': torch.float16},
    },
    'psamask': {
        'collect': MASKS | {'type': 0, 'mask': (5, 7)},
        'distribute': MASKS | {'type': 1, 'mask': (5, 7)},
        'collect-small': MASKS | {'type': 0, 'mask': (2, 3)},
        'distribute-large': MASKS | {'type': 1, 'mask': (9, 9)},
    },
}


def run(ext: Any, operator: str, case: str) -> dict[str, Tensor]:
    """Results of one case with the operators of ``ext``."""
    function = {
        'roi_align': roi_align,
        'deform_conv': deform_conv,
        'modulated_deform_conv': modulated_deform_conv,
        'psamask': psamask,
    }[operator]
    return function(ext, f'{operator}/{case}', **CASES[operator][case])


def main() -> None:
    """Write the stored file."""
    from mmcv import _ext

    if not _ext.__file__.endswith('.so'):
        raise SystemExit(f'{_ext.__file__} is not compiled; run with a Python whose mmcv has a compiled _ext')
    stored = {
        f'{operator}/{case}/{key}': value.numpy()
        for operator, cases in CASES.items()
        for case in cases
        for key, value in run(_ext, operator, case).items()
    }
    np.savez_compressed(STORED, **stored)
    print(f'{len(stored)} results, {STORED.stat().st_size} bytes: {STORED}')


if __name__ == '__main__':
    main()
