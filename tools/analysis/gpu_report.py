r"""Checks and speed of every model on a GPU, as Markdown and JSON.

    python tools/analysis/gpu_report.py --out gpu_report              # everything
    python tools/analysis/gpu_report.py --out gpu_report --quick      # at most 9 minutes
    python tools/analysis/gpu_report.py --out gpu_report --only attention tokens
    python tools/analysis/gpu_report.py --out report_cpu --device cpu # in miniature, on a CPU

Checks compare losses, gradients and predictions with those of the CPU, in fp32, with the same weights, inputs and
random numbers. Speed is measured with CUDA events after three untimed runs; MFU is the fraction of the largest rate of
matrix products that this card reached in the same run. A second run with the same ``--out`` measures what is missing or
failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmitpn.benchmark.case import BenchmarkCase, build_case
from mmitpn.benchmark.macs import count_macs
from mmitpn.benchmark.speed import describe_machine
from mmitpn.models.backbones import ARCHS

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ('peak', 'operators', 'models', 'attention', 'waits', 'detectors', 'kernels', 'tokens', 'sizes')
QUICK_MINUTES = 9.0
Row = dict[str, Any]
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
# Real sizes: config, height and width, batch of a training step.
MEASURED = (
    ('dino/dino-4scale_fast-itpn-t_8xb2-12e_coco.py', (800, 1333), 2),
    ('dino/dino-4scale_fast-itpn-b_8xb2-12e_coco.py', (800, 1333), 2),
    ('mask_dino/mask-dino_fast-itpn-t_8xb2-50e_coco-instance.py', (800, 1333), 2),
    ('upernet/upernet_fast-itpn-b_8xb2-160k_ade20k-512x512.py', (512, 512), 2),
)
GATHERING = {'window_size': 16, 'num_tokens': 4}
WINDOWS = {'window_size': 16, 'num_tokens': 0}


class SameRandomNumbers(TorchFunctionMode):
    """Draw on the CPU what a model draws on another device, so that both get the same numbers."""

    MADE = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.bernoulli})
    LIKE = frozenset({torch.rand_like, torch.randn_like, torch.randint_like})
    FILLED = frozenset({Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.random_})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run ``func``, on the CPU where it draws random numbers."""
        kwargs = dict(kwargs or {})
        if func in self.MADE:
            device = kwargs.pop('device', None)
            args = tuple(each.cpu() if isinstance(each, Tensor) else each for each in args)
            out = func(*args, **kwargs)
            return out if device is None else out.to(device)
        if func in self.LIKE:
            kwargs.pop('device', None)
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        if func in self.FILLED and args[0].device.type != 'cpu':
            return args[0].copy_(func(torch.empty_like(args[0], device='cpu'), *args[1:], **kwargs))
        return func(*args, **kwargs)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def measure(call: Callable[[], Any], device: torch.device, *, seconds: float, least: int = 20) -> Row:
    """Median and 95th percentile of a call in milliseconds, and the peak of the memory allocated."""
    for _ in range(3):
        call()
    synchronize(device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    times, start = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        if device.type == 'cuda':
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after))
        else:
            begun = time.perf_counter()
            call()
            times.append((time.perf_counter() - begun) * 1e3)
        if device.type == 'cpu' and len(times) >= 3:
            break
    row: Row = {'ms': median(times), 'p95': quantiles(times, n=20)[-1], 'runs': len(times)}
    if device.type == 'cuda':
        row['peak_GB'] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, divided by the largest value expected."""
    if not expected.numel():
        return 0.0
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


class Report:
    """Rows of a report: measured, kept in a file after each, and not measured twice."""

    def __init__(self, out: Path, device: torch.device, minutes: float | None, console: Console) -> None:
        self.out, self.device, self.console = out, device, console
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / 'report.json'
        self.rows: dict[str, Row] = {}
        if self.file.is_file():
            self.rows = json.loads(self.file.read_text(encoding='utf-8'))['rows']

    def add(self, section: str, name: str, call: Callable[[], Row]) -> None:
        """Measure one row, unless it is there; an error becomes the row's text and the report goes on."""
        key = f'{section}: {name}'
        if key in self.rows and 'failed' not in self.rows[key] and 'skipped' not in self.rows[key]:
            return
        start = time.monotonic()
        if self.deadline is not None and start > self.deadline:
            row: Row = {'skipped': 'no time left'}
        else:
            try:
                row = call()
            except ModuleNotFoundError as error:
                row = {'skipped': f'{error.name} is not installed'}
            except Exception as error:  # noqa: BLE001 (a report names what fails and measures the rest)
                row = {'failed': f'{type(error).__name__}: {str(error).strip()[:400]}'}
                (self.out / 'errors.log').open('a').write(f'{key}\n{traceback.format_exc()}\n')
        row['section'], row['name'] = section, name
        self.rows[key] = row
        taken = time.monotonic() - start
        text = ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items())
        self.console.print(f'[{taken:5.1f} s] {key}: {text}', markup=False, highlight=False, soft_wrap=True)
        self.write()
        torch._dynamo.reset()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Write the JSON and the Markdown."""
        machine = describe_machine() | {'torch': torch.__version__}
        if self.device.type == 'cuda':
            machine |= {'card': torch.cuda.get_device_name(self.device), 'cuda': torch.version.cuda}
        self.file.write_text(json.dumps({'machine': machine, 'rows': self.rows}, indent=1), encoding='utf-8')
        lines = ['# GPU report', '', ', '.join(f'{key} {value}' for key, value in machine.items()), '']
        for section in SECTIONS:
            rows = [row for row in self.rows.values() if row['section'] == section]
            columns = list(dict.fromkeys(key for row in rows for key in row if key != 'section'))
            if rows:
                lines += [f'## {section}', '', f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
                lines += [f'| {" | ".join(_cell(row.get(key, "")) for key in columns)} |' for row in rows] + ['']
        (self.out / 'report.md').write_text('\n'.join(lines), encoding='utf-8')


def _cell(value: Any) -> str:
    text = f'{value:.3g}' if isinstance(value, float) else str(value)
    return text.replace('|', '/').replace('\n', ' ')


# --- the card ---------------------------------------------------------------------------------------------------------


def gemm_peak(device: torch.device, dtype: torch.dtype) -> Row:
    """The largest rate of square matrix products."""
    sides = (256,) if device.type == 'cpu' else (4096, 8192)
    rates = {}
    for side in sides:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[side] = 2 * side**3 / measure(partial(torch.mm, left, right), device, seconds=0.5)['ms'] * 1e-9
    return {'TFLOP/s': max(rates.values())}


def attention_peak(device: torch.device, tokens: int) -> Row:
    """Fused attention with 64 channels per head."""
    q, k, v = (torch.randn(8, 8, tokens, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    row = measure(lambda: nn.functional.scaled_dot_product_attention(q, k, v), device, seconds=0.5)
    return {'TFLOP/s': 4 * 8 * 8 * tokens**2 * 64 / row['ms'] * 1e-9, **row}


# --- checks -----------------------------------------------------------------------------------------------------------


def operators() -> Iterator[tuple[str, Callable[..., Any], list[Tensor]]]:
    """Name, function and inputs of the operators that detectors use on a GPU; gradients of inputs that require them."""
    from mmcv import ops

    maps = torch.randn(2, 8, 25, 30, requires_grad=True)
    start = torch.rand(40, 2) * 60
    boxes = torch.cat((start, start + 1 + torch.rand(40, 2) * 80), 1)
    rois = torch.cat((torch.randint(0, 2, (40, 1)).float(), boxes), 1)
    yield 'roi_align', lambda x, r: ops.roi_align(x, r, (7, 7), 0.25, 0, 'avg', True), [maps, rois]
    yield 'roi_align max', lambda x, r: ops.roi_align(x, r, (7, 7), 0.25, 2, 'max', True), [maps, rois]
    yield 'roi_pool', lambda x, r: ops.roi_pool(x, r, 7, 0.25), [maps, rois]
    scores = torch.rand(40)
    yield 'nms', lambda b, s: ops.nms(b, s, 0.5)[1], [boxes, scores]
    yield 'soft_nms', lambda b, s: ops.soft_nms(b, s, 0.3)[0], [boxes, scores]
    offsets = torch.randn(2, 18, 25, 30, requires_grad=True)
    weight = torch.randn(4, 8, 3, 3, requires_grad=True)
    yield 'deform_conv2d', lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), [maps, offsets, weight]
    mask = torch.rand(2, 9, 25, 30, requires_grad=True)
    yield (
        'modulated_deform_conv2d',
        lambda x, o, m, w: ops.modulated_deform_conv2d(x, o, m, w, None, 1, 1),
        [maps, offsets, mask, weight],
    )
    masks = torch.randn(2, 25, 50, 60).softmax(1).requires_grad_()
    yield 'carafe', lambda x, m: ops.carafe(x, m, 5, 1, 2), [maps, masks]
    logits = torch.randn(40, 9, requires_grad=True)
    labels = torch.randint(0, 10, (40,))
    yield 'sigmoid_focal_loss', lambda x, t: ops.sigmoid_focal_loss(x, t, 2.0, 0.25, None, 'none'), [logits, labels]
    rotated = torch.cat((boxes, torch.rand(40, 1) * 3), 1)
    yield 'box_iou_rotated', lambda a: ops.box_iou_rotated(a, a), [rotated]
    points = torch.rand(2, 60, 2, requires_grad=True)
    yield 'point_sample', ops.point_sample, [maps, points]


def check_operator(call: Callable[..., Any], inputs: list[Tensor], device: torch.device) -> Row:
    """Output and gradients of an operator on the device against the CPU."""
    results = []
    for where in ('cpu', device):
        here = [each.detach().to(where).requires_grad_(each.requires_grad) for each in inputs]
        output = call(*here)
        wanted = [each for each in here if each.requires_grad]
        torch.manual_seed(0)
        gradient = torch.randn(output.shape).to(output.device)
        gradients = torch.autograd.grad(output, wanted, gradient) if wanted else ()
        results.append([output, *gradients])
    differences = [largest_difference(found, expected) for expected, found in zip(*results, strict=True)]
    row = {'output': differences[0], 'gradients': max(differences[1:], default=0.0)}
    if max(differences) > 1e-4:
        raise RuntimeError(f'differs from the CPU: {row}')
    return row


def check_model(config: str, device: torch.device, size: tuple[int, int]) -> Row:
    """Losses, gradients and predictions of a model on the device against the CPU, in fp32."""
    from mmitpn.testing.demo_inputs import build_from_config, loss_call, make_samples, model_kind

    torch.manual_seed(0)
    original = build_from_config(ROOT / 'configs' / config)
    for name, module in original.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # a fused kernel draws its own numbers
        elif name.endswith('sampling_offsets'):
            # Untrained, they point at centers of cells, where the gradient jumps and rounding decides.
            module.bias.data += 0.01 * torch.randn_like(module.bias)
    kind, results = model_kind(original), []
    for where in (torch.device('cpu'), device):
        model = copy.deepcopy(original).to(where).train()
        torch.manual_seed(1)
        inputs = torch.randn(2, 3, *size)
        samples = make_samples(model, size, batch=2, objects=5, device=where)
        with SameRandomNumbers():
            loss = loss_call(model, inputs.to(where), samples)()
            loss.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        scores = torch.zeros(0)
        if kind != 'pretraining':
            model.eval()
            with torch.no_grad():
                predicted = model(inputs.to(where), samples, mode='predict')
            if kind == 'detector' and 'pred_instances' in predicted[0]:
                scores = torch.cat([each.pred_instances.scores for each in predicted]).cpu()
            elif kind == 'segmentor':
                scores = torch.cat([each.seg_logits.data for each in predicted]).cpu()
            elif kind == 'classifier':
                scores = torch.cat([each.pred_score for each in predicted]).cpu()
        results.append((loss.detach().cpu(), gradients, scores))
    (loss, gradients, scores), (found_loss, found_gradients, found_scores) = results
    row = {
        'loss': largest_difference(found_loss, loss),
        'gradients': float((found_gradients - gradients).norm() / gradients.norm()),
    }
    if scores.numel() or found_scores.numel():  # an untrained model may find nothing, which compares nothing
        same = scores.shape == found_scores.shape
        row['predictions'] = largest_difference(found_scores, scores) if same else float('nan')
    if not all(value < 1e-2 for value in row.values()):
        raise RuntimeError(f'differs from the CPU: {row}')
    return row


# --- speed ------------------------------------------------------------------------------------------------------------


def deformable_attention(device: torch.device, queries: int | None, path: str, dtype: torch.dtype) -> Row:
    """Forward and backward of deformable attention's sampling at 800x1333, two images, by one of its paths."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    from mmitpn.ops.deformable_attention import triton_kernels

    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)] if device.type == 'cuda' else [(10, 17), (5, 9)]
    positions = sum(h * w for h, w in shapes)
    count = queries or positions
    value = torch.randn(2, positions, 8, 32, device=device).to(dtype).requires_grad_()
    points = torch.rand(2, count, 8, len(shapes), 4, 2, device=device).requires_grad_()
    weights = torch.rand(2, count, 8, len(shapes), 4, device=device).requires_grad_()
    sizes = torch.tensor(shapes, device=device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    if path == 'triton':
        kernels = triton_kernels(value)
        if kernels is None:
            return {'skipped': 'no Triton kernels on this device'}
        call = partial(kernels.TritonSample.apply, value, sizes, starts, points, weights)
    else:
        call = partial(multi_scale_deformable_attn_pytorch, value, shapes, points.to(dtype), weights.to(dtype))
    forward = measure(torch.no_grad()(call), device, seconds=0.5)
    output = call()
    gradient = torch.randn_like(output)
    inputs = (value, points, weights)
    both = measure(lambda: torch.autograd.grad(call(), inputs, gradient), device, seconds=0.5)
    return {'forward ms': forward['ms'], 'step ms': both['ms'], 'peak_GB': both.get('peak_GB', 0.0)}


def speed_of(
    report: Report,
    case: BenchmarkCase,
    *,
    compiled: str | None = None,
    half_weights: bool = False,
) -> Row:
    """Time per image and MFU of a part of the network.

    Args:
        report: For the device and the card's peak.
        case: What to measure, without a config.
        compiled: Mode of ``torch.compile``.
        half_weights: Weights in bf16 too, instead of autocast.
    """
    device = report.device
    torch.manual_seed(0)
    model, step = build_case(case)
    macs = count_macs(model, call=step).total
    inputs = torch.randn(case.batch, 3, *case.size, device=device)
    if half_weights:
        model, inputs = model.bfloat16(), inputs.bfloat16()
    network = torch.compile(model, mode=None if compiled == 'default' else compiled) if compiled else model
    start = time.perf_counter()
    cast = nullcontext() if half_weights or case.dtype == 'fp32' else torch.autocast(device.type, torch.bfloat16)

    def call() -> Any:
        with torch.inference_mode(), cast:
            return network(inputs)

    call()
    synchronize(device)
    first = time.perf_counter() - start
    row = measure(call, device, seconds=1.0)
    if compiled:
        row['compile s'] = first
    peak = report.rows.get(f'peak: GEMM {case.dtype}', {}).get('TFLOP/s')
    if peak:
        row['MFU'] = 2 * macs / row['ms'] * 1e-9 / peak
    return {'ms/image': row['ms'] / case.batch, **row, 'GMAC/image': macs / case.batch / 1e9}


def kernels(device: torch.device, case: BenchmarkCase, *, half_weights: bool, compiled: bool) -> Row:
    """The kernels of one inference that take the most time, as fractions of all."""
    torch.manual_seed(0)
    model, _ = build_case(case)
    inputs = torch.randn(case.batch, 3, *case.size, device=device)
    if half_weights:
        model, inputs = model.bfloat16(), inputs.bfloat16()
    network = torch.compile(model) if compiled else model
    cast = nullcontext() if half_weights else torch.autocast(device.type, torch.bfloat16)
    activity = torch.profiler.ProfilerActivity.CUDA if device.type == 'cuda' else torch.profiler.ProfilerActivity.CPU
    with torch.inference_mode(), cast:
        for _ in range(3):
            network(inputs)
        synchronize(device)
        with torch.profiler.profile(activities=[activity]) as profile:
            network(inputs)
            synchronize(device)
    spent = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
    total = sum(each.self_device_time_total for each in spent) or 1.0
    row: Row = {'ms': total / 1e3}
    for each in spent[:14]:
        row[each.key[:90]] = f'{each.self_device_time_total / total:.1%} ({each.count})'
    return row


def detector(device: torch.device, config: str, size: tuple[int, int], batch: int, *, train: bool) -> Row:
    """A prediction or a training step (forward and backward) of a whole model in bf16 autocast."""
    case = BenchmarkCase(
        'detector',
        size,
        config=str(ROOT / 'configs' / config),
        batch=batch,
        dtype='bf16',
        train=train,
        predict=not train,
        device=device.type,
    )
    _, step = build_case(case)
    return measure(step, device, seconds=2.0, least=10)


def count_waits(device: torch.device, config: str, size: tuple[int, int], *, train: bool) -> Row:
    """How often the host waits for the GPU in a step, by torch's own warnings."""
    case = BenchmarkCase(
        'detector',
        size,
        config=str(ROOT / 'configs' / config),
        batch=2,
        dtype='bf16',
        train=train,
        predict=not train,
        device=device.type,
    )
    _, step = build_case(case)
    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        step()
        torch.cuda.set_sync_debug_mode('default')
    waits = [one for one in caught if 'synchroniz' in str(one.message)]
    lines = [f'{Path(one.filename).name}:{one.lineno}' for one in waits]
    most = sorted(set(lines), key=lines.count, reverse=True)[:8]
    return {'waits': len(waits), 'lines': ', '.join(f'{line} ({lines.count(line)})' for line in most)}


# --- the report -------------------------------------------------------------------------------------------------------


def run(report: Report, sections: list[str], *, quick: bool) -> None:
    """Measure every row of the sections."""
    device = report.device
    small = device.type == 'cpu'
    if 'peak' in sections:
        for name, dtype in (('bf16', torch.bfloat16), ('fp32', torch.float32)):
            report.add('peak', f'GEMM {name}', partial(gemm_peak, device, dtype))
        for tokens in (64,) if small else (1024, 4096):
            report.add('peak', f'attention bf16 {tokens} tokens', partial(attention_peak, device, tokens))
    if 'operators' in sections:
        torch.manual_seed(0)
        try:
            named = list(operators())
        except ImportError as error:
            named = []
            report.add('operators', 'mmcv', partial(dict, skipped=str(error)))
        for name, call, inputs in named:
            report.add('operators', name, partial(check_operator, call, inputs, device))
    if 'models' in sections:
        for config in CHECKED[:1] if small else CHECKED:
            report.add('models', config, partial(check_model, config, device, (128, 160)))
    if 'attention' in sections:
        for where, queries in (('encoder', None), ('900 queries', 900)):
            for path in ('triton', 'pytorch'):
                for name, dtype in (('fp32', torch.float32), ('bf16', torch.bfloat16)):
                    call = partial(deformable_attention, device, queries, path, dtype)
                    report.add('attention', f'{where}, {path}, {name}', call)
    if 'waits' in sections and not small:
        for config in (CHECKED[0], CHECKED[1], CHECKED[4], MEASURED[0][0], MEASURED[2][0]):
            for train in (False, True):
                call = partial(count_waits, device, config, (256, 320), train=train)
                report.add('waits', f'{"loss" if train else "prediction"}, {config}', call)
    if 'detectors' in sections and not small:
        for config, size, batch in MEASURED:
            for train in (False, True):
                name = f'{"training step" if train else "prediction"}, batch {batch if train else 1}, {config}'
                call = partial(detector, device, config, size, batch if train else 1, train=train)
                report.add('detectors', name, call)
    if 'kernels' in sections and not small:
        for name, backbone in (('global', {}), ('gathering', {'token_gathering': GATHERING})):
            case = BenchmarkCase(
                'backbone+pyramid', (1024, 1024), batch=8, dtype='bf16', device=device.type, backbone=backbone
            )
            report.add('kernels', f'{name}, eager', partial(kernels, device, case, half_weights=False, compiled=False))
        call = partial(kernels, device, case, half_weights=False, compiled=True)
        report.add('kernels', 'gathering, compiled', call)
    if 'tokens' in sections:
        _tokens(report, small=small, quick=quick)
    if 'sizes' in sections:
        _sizes(report, small=small, quick=quick)


def _tokens(report: Report, *, small: bool, quick: bool) -> None:
    """B and its pyramid at 1024 pixels: global attention, windows, gathering, migration, both; eager and compiled."""
    depth = ARCHS['base']['depths'][-1]
    blocks = tuple(range(depth // 4 - 1, depth, depth // 4))  # the last of each quarter
    variants: dict[str, dict[str, Any]] = {
        'global': {},
        'windows, 4 global blocks': {'token_gathering': {**WINDOWS, 'global_blocks': blocks}},
        'gathering': {'token_gathering': GATHERING},
        'migration': {'token_migration': {}},
        'both': {'token_gathering': GATHERING, 'token_migration': {}},
    }
    size, batch = ((64, 64), 1) if small else ((1024, 1024), 8)
    order = ['global', 'both', 'gathering', 'windows, 4 global blocks', 'migration']  # compiled: what matters first
    for mode, names in ((None, list(variants)), ('default', [] if small else order)):
        for name in names:
            backbone = variants[name]
            case = BenchmarkCase(
                'backbone+pyramid',
                size,
                arch='base',
                batch=batch,
                dtype='bf16',
                device=report.device.type,
                backbone=backbone,
            )
            label = f'{"compiled" if mode else "eager"}, batch {batch}, {name}'
            report.add('tokens', label, partial(speed_of, report, case, compiled=mode))
    if small:
        return
    one = BenchmarkCase('backbone+pyramid', size, arch='base', batch=1, dtype='bf16', device=report.device.type)
    report.add('tokens', 'eager, batch 1, global', partial(speed_of, report, one))
    report.add('tokens', 'CUDA graphs, batch 1, global', partial(speed_of, report, one, compiled='reduce-overhead'))
    eight = BenchmarkCase('backbone+pyramid', size, arch='base', batch=8, dtype='bf16', device=report.device.type)
    report.add('tokens', 'eager, batch 8, global, bf16 weights', partial(speed_of, report, eight, half_weights=True))
    if not quick:
        call = partial(speed_of, report, eight, compiled='default', half_weights=True)
        report.add('tokens', 'compiled, batch 8, global, bf16 weights', call)


def _sizes(report: Report, *, small: bool, quick: bool) -> None:
    """Backbone and pyramid of every architecture at several sizes."""
    sizes = ((64, 64),) if small else ((224, 224), (512, 512), (1024, 1024), (800, 1333))
    for arch in ('tiny',) if small else ('tiny', 'small', 'base', 'large'):
        for size in sizes:
            for batch in (1,) if small else (1, 8):
                case = BenchmarkCase(
                    'backbone+pyramid', size, arch=arch, batch=batch, dtype='bf16', device=report.device.type
                )
                name = f'{arch}, {size[0]}x{size[1]}, batch {batch}'
                report.add('sizes', f'{name}, eager', partial(speed_of, report, case))
                if not quick and not small:
                    report.add('sizes', f'{name}, compiled', partial(speed_of, report, case, compiled='default'))


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of report.json, report.md and errors.log')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='cpu: in miniature')
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=list(SECTIONS), help='sections')
    parser.add_argument(
        '--quick', action='store_true', help=f'fewer rows, none started after {QUICK_MINUTES:g} minutes'
    )
    parser.add_argument('--minutes', type=float, help='start no row after this time')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no CUDA device; run it on a machine with one, or with --device cpu')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    minutes = args.minutes or (QUICK_MINUTES if args.quick else None)
    report = Report(args.out, torch.device(args.device), minutes, Console(width=160))
    run(report, args.only, quick=args.quick)
    failed = [key for key, row in report.rows.items() if 'failed' in row]
    report.console.print(f'{len(report.rows)} rows, {len(failed)} failed; written: {args.out}', markup=False)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
