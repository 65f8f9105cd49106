"""The rows of the report on a GPU, the most important first, with what each takes.

Times are in seconds on an H200: a compiled row took 29 to 78 there, an eager one a few. A run with a time limit
measures from the top, and leaves out what the rest of its time does not suffice for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mmitpn.benchmark.case import BenchmarkCase
from mmitpn.benchmark.gpu.aims import BATCH, row_name
from mmitpn.benchmark.gpu.card import ATTENTION, PATHS, attention_peak, deformable_attention, gemm_peak
from mmitpn.benchmark.gpu.checks import OPERATORS, check_compiled, check_model, check_operator
from mmitpn.benchmark.gpu.networks import kernel_times, network_speed
from mmitpn.benchmark.gpu.report import SECTIONS, PlannedRow, Row
from mmitpn.benchmark.gpu.settings import copy_of_images, fp32_speed, optimizer_step
from mmitpn.benchmark.gpu.whole_models import count_waits, model_speed
from mmitpn.models.backbones import ARCHS
from mmitpn.utils import config_folder

# Every kind of model, small: what is compared with the CPU.
CHECKED = (
    'quickstart/dino_fast-itpn-nano_shapes.py',
    'quickstart/mask-dino_fast-itpn-nano_shapes-instance.py',
    'quickstart/mask-dino_fast-itpn-nano_shapes-panoptic.py',
    'quickstart/mask-dino_fast-itpn-nano_shapes-semantic.py',
    'quickstart/upernet_fast-itpn-nano_shapes.py',
    'quickstart/pretrain_fast-itpn-nano_shapes-mfm.py',
    'classification/fast-itpn-t_16xb64-100e_in1k-224.py',
    'mask_rcnn/mask-rcnn_fast-itpn-t_8xb8-12e_coco.py',
)
# Real sizes: config, height and width.
UPERNET = ('upernet/upernet_fast-itpn-b_8xb2-160k_ade20k-512x512.py', (512, 512))
MEASURED = (
    ('dino/dino-4scale_fast-itpn-t_8xb2-12e_coco.py', (800, 1333)),
    ('mask_dino/mask-dino_fast-itpn-t_8xb2-50e_coco-instance.py', (800, 1333)),
    UPERNET,
    ('dino/dino-4scale_fast-itpn-b_8xb2-12e_coco.py', (800, 1333)),
)
# Config, and the largest numbers of waits of the host in a prediction and in the loss; mmseg's losses have their own.
WAITS = {
    CHECKED[0]: (2, 4),
    CHECKED[1]: (2, 4),
    CHECKED[4]: (0, None),
    MEASURED[0][0]: (2, 4),
    MEASURED[1][0]: (2, 4),
}
SIZES = ((1024, 1024), (800, 1333), (512, 512), (224, 224))
GATHERING = {'window_size': 16, 'num_tokens': 4}
DEPTH = ARCHS['base']['depths'][-1]
VARIANTS: dict[str, dict[str, Any]] = {
    'global': {},
    'gathering': {'token_gathering': GATHERING},
    'both': {'token_gathering': GATHERING, 'token_migration': {}},
    'windows, 4 global blocks': {  # the last block of each quarter
        'token_gathering': {
            'window_size': 16,
            'num_tokens': 0,
            'global_blocks': tuple(range(DEPTH // 4 - 1, DEPTH, DEPTH // 4)),
        }
    },
    'migration': {'token_migration': {}},
}
MODES = {None: 'eager', 'default': 'compiled', 'reduce-overhead': 'CUDA graphs'}  # of torch.compile
EAGER, COMPILED = 3.0, 60.0


def plan_rows(
    device: torch.device, peak: Callable[[str], float | None], *, sections: tuple[str, ...] = SECTIONS
) -> list[PlannedRow]:
    """The rows of some sections, in the order in which they are measured.

    Args:
        device: Where they run. On a CPU they are few and small, and compile nothing.
        peak: The rate of the card's matrix products by dtype, once it was measured.
        sections: Names of sections.
    """
    rows = _miniature(device, peak) if device.type == 'cpu' else _everything(device, peak)
    return [row for row in rows if row.section in sections]


def _everything(device: torch.device, peak: Callable[[str], float | None]) -> Iterator[PlannedRow]:
    yield from _peaks(device, tokens=(4096, 1024), sides=None)
    yield from _checks(device, CHECKED)
    base = BenchmarkCase('backbone+pyramid', (1024, 1024), batch=BATCH, dtype='bf16', device=device.type)
    yield from _tokens(base, peak, ('global', 'gathering', 'both'), compiled='default')
    one = replace(base, batch=1)
    yield _token_row(one, peak, 'global', compiled='reduce-overhead')
    yield from _models(device, MEASURED)
    yield from _deformable(device)
    yield from _tokens(base, peak, tuple(VARIANTS), compiled=None)
    yield from _waits(device)
    yield from _tokens(base, peak, ('windows, 4 global blocks', 'migration'), compiled='default')
    for variant in ('global', 'gathering'):
        yield _kernel_row(base, variant, compiled=None)
    yield from _settings(device, (1024, 1024), 'base')
    yield _token_row(one, peak, 'global', compiled=None)
    yield _token_row(base, peak, 'global', compiled=None, half_weights=True)
    yield from _sizes(device, peak, SIZES, batches=(1, 8), compiled=None)
    yield from _compiled(device, (CHECKED[0], CHECKED[1], CHECKED[4]), backend='inductor', seconds=2 * COMPILED)
    yield from _models(device, MEASURED[:3], compiled='default')
    yield from _models(device, MEASURED[:3], compiled='reduce-overhead', modes=(False,))
    for variant in ('global', 'gathering'):
        yield _kernel_row(base, variant, compiled='default')
    yield _token_row(base, peak, 'global', compiled='default', half_weights=True)
    yield from _sizes(device, peak, SIZES, batches=(1, 8), compiled='default')


def _miniature(device: torch.device, peak: Callable[[str], float | None]) -> Iterator[PlannedRow]:
    yield from _peaks(device, tokens=(64,), sides=(128,))
    yield from _checks(device, CHECKED[:1])
    yield from _compiled(device, CHECKED[4:5], backend='eager', seconds=0.0)
    nano = BenchmarkCase('backbone+pyramid', (64, 64), arch='nano', dtype='bf16', device=device.type)
    for variant in VARIANTS:
        yield _token_row(nano, peak, variant, compiled=None, depth=ARCHS['nano']['depths'][-1])
    yield from _models(device, tuple((config, (64, 96)) for config in (CHECKED[0], CHECKED[1], CHECKED[4])), batch=1)
    yield from _deformable(device)
    yield _kernel_row(nano, 'global', compiled=None)
    yield from _settings(device, (64, 64), 'nano')
    yield from _sizes(device, peak, ((64, 64),), batches=(1,), compiled=None, archs=('nano',))


# --- rows of one kind -------------------------------------------------------------------------------------------------


def _peaks(device: torch.device, *, tokens: tuple[int, ...], sides: tuple[int, ...] | None) -> Iterator[PlannedRow]:
    for name, dtype in (('bf16', torch.bfloat16), ('fp32', torch.float32)):
        yield PlannedRow('peak', f'GEMM {name}', partial(gemm_peak, device, dtype, sides=sides), 3.0)
    for count in tokens:
        for backend in (*ATTENTION, 'as torch chooses'):
            call = partial(attention_peak, device, count, backend)
            yield PlannedRow('peak', f'attention bf16, {count} tokens, {backend}', call, 1.0)


def _checks(device: torch.device, configs: tuple[str, ...]) -> Iterator[PlannedRow]:
    for name in OPERATORS:
        yield PlannedRow('operators', name, partial(check_operator, name, device), 1.0)
    for config in configs:
        call = partial(check_model, config_folder() / config, device, (128, 160))
        yield PlannedRow('models', config, call, 5.0)


def _compiled(device: torch.device, configs: tuple[str, ...], *, backend: str, seconds: float) -> Iterator[PlannedRow]:
    for config in configs:
        call = partial(check_compiled, config_folder() / config, device, (128, 160), backend=backend)
        yield PlannedRow('models', f'compiled, {config}', call, seconds)


def _token_row(
    case: BenchmarkCase,
    peak: Callable[[str], float | None],
    variant: str,
    *,
    compiled: str | None,
    half_weights: bool = False,
    depth: int = DEPTH,
) -> PlannedRow:
    def call() -> Row:
        return network_speed(case, peak(case.dtype), compiled=compiled, half_weights=half_weights)

    backbone = VARIANTS[variant]
    if depth != DEPTH and 'global_blocks' in backbone.get('token_gathering', {}):
        backbone = {'token_gathering': {**backbone['token_gathering'], 'global_blocks': (depth - 1,)}}
    case = replace(case, backbone=backbone)
    name = row_name(variant, mode=MODES[compiled], batch=case.batch) + (', bf16 weights' if half_weights else '')
    return PlannedRow('tokens', name, call, COMPILED if compiled else EAGER)


def _tokens(
    case: BenchmarkCase, peak: Callable[[str], float | None], variants: tuple[str, ...], *, compiled: str | None
) -> Iterator[PlannedRow]:
    for variant in variants:
        yield _token_row(case, peak, variant, compiled=compiled)


def _kernel_row(case: BenchmarkCase, variant: str, *, compiled: str | None) -> PlannedRow:
    case = replace(case, backbone=VARIANTS[variant])
    name = f'{variant}, {"compiled" if compiled else "eager"}'
    return PlannedRow('kernels', name, partial(kernel_times, case, compiled=compiled), COMPILED if compiled else 4.0)


def _models(
    device: torch.device,
    configs: tuple[tuple[str, tuple[int, int]], ...],
    *,
    compiled: str | None = None,
    modes: tuple[bool, ...] = (False, True),
    batch: int = 2,
) -> Iterator[PlannedRow]:
    """Predictions of one image (False in ``modes``), and training steps of ``batch`` images (True)."""
    for config, size in configs:
        for train in modes:
            count = batch if train else 1
            name = f'{"training step" if train else "prediction"}, batch {count}, {MODES[compiled]}, {config}'
            call = partial(
                model_speed, config_folder() / config, size, device, batch=count, train=train, compiled=compiled
            )
            yield PlannedRow('detectors', name, call, 2 * COMPILED if compiled else 8.0)


def _waits(device: torch.device) -> Iterator[PlannedRow]:
    for config, budgets in WAITS.items():
        call = partial(count_waits, config_folder() / config, (256, 320), device, budgets=budgets)
        yield PlannedRow('waits', config, call, 6.0)


def _deformable(device: torch.device) -> Iterator[PlannedRow]:
    for where, queries in (('encoder', None), ('900 queries', 900)):
        for path in PATHS:
            dtypes = {'fp32': torch.float32}
            if device.type == 'cuda' and path != 'compiled mmcv':  # whose kernels have no bf16
                dtypes['bf16'] = torch.bfloat16
            for name, dtype in dtypes.items():
                call = partial(deformable_attention, device, queries, path, dtype)
                yield PlannedRow('attention', f'{where}, {path}, {name}', call, 2.0)


def _settings(device: torch.device, size: tuple[int, int], arch: str) -> Iterator[PlannedRow]:
    for name, fused in (('as torch chooses', False), ('fused', True)):
        call = partial(optimizer_step, device, arch, fused=fused)
        yield PlannedRow('settings', f'AdamW of {arch}, {name}', call, 2.0)
    for name, pinned in (('pageable', False), ('pinned, without a wait', True)):
        call = partial(copy_of_images, device, size, pinned=pinned)
        yield PlannedRow('settings', f'copy of 8 images, {name}', call, 2.0)
    case = BenchmarkCase('backbone+pyramid', size, arch=arch, batch=2, device=device.type)
    for name, tf32 in (('fp32', False), ('TF32', True)):
        yield PlannedRow('settings', f'{arch} and pyramid, {name}', partial(fp32_speed, case, tf32=tf32), 4.0)
    config, shape = UPERNET
    if device.type == 'cpu':
        config, shape = CHECKED[4], (64, 64)
    call = partial(model_speed, config_folder() / config, shape, device, batch=1, train=False, channels_last=True)
    yield PlannedRow('settings', f'prediction, channels-last weights, {config}', call, 8.0)


def _sizes(
    device: torch.device,
    peak: Callable[[str], float | None],
    sizes: tuple[tuple[int, int], ...],
    *,
    batches: tuple[int, ...],
    compiled: str | None,
    archs: tuple[str, ...] = ('base', 'tiny', 'small', 'large'),
) -> Iterator[PlannedRow]:
    def speed(case: BenchmarkCase) -> Row:
        return network_speed(case, peak(case.dtype), compiled=compiled)

    for arch in archs:
        for size in sizes:
            for batch in batches:
                case = BenchmarkCase('backbone+pyramid', size, arch=arch, batch=batch, dtype='bf16', device=device.type)
                name = f'{arch}, {size[0]}x{size[1]}, batch {batch}, {"compiled" if compiled else "eager"}'
                yield PlannedRow('sizes', name, partial(speed, case), COMPILED if compiled else EAGER)
