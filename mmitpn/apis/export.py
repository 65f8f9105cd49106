"""A trained model as one file for ONNX Runtime or OpenVINO, with everything that a prediction needs inside."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from torch import nn

from mmitpn.apis.data_sources import DataSource
from mmitpn.apis.model_loading import build_model, find_outputs, find_pipeline, resolve_model
from mmitpn.atomic import write_atomic
from mmitpn.deploy.graph import ExportGraph, build_graph
from mmitpn.deploy.metadata import KEY, PRECISIONS, ExportInfo
from mmitpn.deploy.onnx_writer import LARGEST_SIDE, export_program, set_metadata, to_onnx
from mmitpn.deploy.preprocessing import BACKENDS, STEPS, pad_images, prepare_image, read_image
from mmitpn.deploy.runtimes import FORMATS, SUFFIXES, import_runtime, load_session
from mmitpn.utils import check_int

if TYPE_CHECKING:
    import onnx

GRID_SAMPLES = ('native', 'gather')
LEAST_SIDE = 32
# Of files for any size: the coarse maps of smaller images have a side of 1, which would become a constant.
LEAST_FREE_SIDE = 128
EXAMPLE = (2, 331, 475)  # batch, height and width with which free sizes are traced: none of them is special
CALIBRATION_IMAGES = 64
IMAGENET = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}


def export(
    config: str | os.PathLike | nn.Module,
    weights: str | os.PathLike | None = None,
    *,
    format: str = 'onnx',  # noqa: A002 (the option's name)
    output: str | os.PathLike | None = None,
    size: str | tuple[int, int] = 'dynamic',
    batch: str | int = 'dynamic',
    precision: str = 'fp32',
    calibration: str | os.PathLike | None = None,
    features: bool = False,
    grid_sample: str = 'native',
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a model as one file, which :class:`mmitpn.Predictor` runs, or its runtime without mmitpn.

    Args:
        config: See :class:`mmitpn.Predictor`. With ``features`` also a module: a backbone, or one with ``backbone`` and
            ``neck``.
        weights: See :class:`mmitpn.Predictor`.
        format: ``onnx`` (opset 18, standard operators), ``openvino`` (``.xml`` and ``.bin``), or ``torch``: a program
            of torch.export (``.pt2``), whose readers have to trust it.
        output: The file; default: the config's name in this folder.
        size: ``dynamic``: images of any size, as the test pipeline makes them (one size if it crops them); or height
            and width: images are resized into it and padded.
        batch: ``dynamic``, or the number of images of every batch.
        precision: ``fp32``; ``fp16``: weights in half precision, computed as the runtime chooses; ``int8``: quantized,
            except the layers that lose accuracy (:mod:`mmitpn.deploy.quantize`). The format ``torch`` has only
            ``fp32``.
        calibration: For ``int8``, and required there: a folder or other source of images like those of the task, 32 or
            more; at most 64 are used.
        features: Export backbone and pyramid, whose maps are the outputs. Such a file is not for
            :class:`mmitpn.Predictor`: run it by :func:`mmitpn.deploy.runtimes.load_session`.
        grid_sample: ``native`` (GridSample), or ``gather`` for runtimes that compile GridSample to wrong results.
        report: Called with a line about each step.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such config or file.
        ImportError: If a package of the export is not installed.
        ValueError: If the model, an option or the calibration is not supported; the message says what is.
    """
    _check_options(format, precision, calibration, grid_sample)
    number = _read_batch(batch)
    target = _target(output, config, format)
    graph, info = _build(config, weights, features=features)
    info = _with_size(info, read_size(size), number, graph)
    images = _calibration_images(calibration) if precision == 'int8' else None
    report(f'tracing {_describe(info)}')
    example = (number or EXAMPLE[0], *(info.size or EXAMPLE[1:]))
    program = export_program(graph, example, info=info, grid_sample=grid_sample)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.stem}-') as folder:
        draft = Path(folder) / target.name  # no unverified file under the final name
        if format == 'torch':
            write_program(
                program, replace(info, settings={**info.settings, 'outputs': list(graph.output_names)}), draft
            )
        else:
            model = to_onnx(program, graph, info)
            _write(model, info, draft, format=format, precision=precision, images=images, report=report)
        report(_verify(draft, graph, info))
        for file in (draft.with_suffix('.bin'), draft):
            if file.is_file():
                file.replace(target.with_suffix(file.suffix))
    return target


# --- options ----------------------------------------------------------------------------------------------------------


def read_size(size: Any) -> tuple[int, int] | None:
    """Height and width from ``'512x768'`` or a pair; None for ``'dynamic'``.

    Raises:
        ValueError: If it is neither, or a side is too small or too large.
    """
    if size == 'dynamic':
        return None
    parts = size.lower().split('x') if isinstance(size, str) else size
    try:
        height, width = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f'size is {size!r}; give height and width, such as 512x768, or dynamic') from None
    if not all(LEAST_SIDE <= side <= LARGEST_SIDE for side in (height, width)):
        raise ValueError(
            f'size is {height}x{width}; the network takes sides from {LEAST_SIDE} to {LARGEST_SIDE} pixels: give such a'
            ' height and width, or dynamic'
        )
    return height, width


def _read_batch(batch: Any) -> int | None:
    if batch == 'dynamic':
        return None
    if isinstance(batch, str) and batch.isdecimal():
        batch = int(batch)
    check_int('batch', batch)
    return batch


def _check_options(kind: str, precision: str, calibration: Any, grid_sample: str) -> None:
    for name, value, allowed in (
        ('format', kind, FORMATS),
        ('precision', precision, PRECISIONS),
        ('grid_sample', grid_sample, GRID_SAMPLES),
    ):
        if value not in allowed:
            raise ValueError(f'{name} is {value!r}; allowed: {", ".join(allowed)}')
    if precision == 'int8' and calibration is None:
        raise ValueError('precision int8 needs calibration: a folder of 32 or more images like those of the task')
    if precision != 'int8' and calibration is not None:
        raise ValueError(f'calibration is for precision int8, but precision is {precision}: leave it out')
    if kind == 'torch' and precision != 'fp32':
        raise ValueError(f'precision is {precision!r}, but the format torch has fp32 alone: give onnx or openvino')
    if kind == 'torch':
        return
    import_runtime('onnx', 'onnx', 'the export')
    import_runtime('onnxscript', 'onnxscript', 'the export')
    if kind == 'openvino':
        import_runtime('openvino', 'openvino', 'an export for OpenVINO')
    if precision == 'int8':
        package = 'nncf' if kind == 'openvino' else 'onnxruntime'
        import_runtime(package, package, f'int8 for {kind}')


def _target(output: Any, config: Any, kind: str) -> Path:
    suffix = next(ending for ending, name in SUFFIXES.items() if name == kind)
    if output is None:
        name = type(config).__name__.lower() if isinstance(config, nn.Module) else Path(os.fspath(config)).stem
        return Path(name + suffix)
    target = Path(output).expanduser()
    if target.suffix.lower() != suffix:
        raise ValueError(f'the output file is {target}; its name must end in {suffix} for format {kind}')
    if target.is_dir():
        raise ValueError(f'{target} is a folder; give the path of a file')
    return target


# --- the model and its metadata ---------------------------------------------------------------------------------------


def _build(config: Any, weights: Any, *, features: bool) -> tuple[ExportGraph, ExportInfo]:
    if isinstance(config, nn.Module):
        if not features or weights is not None:
            raise ValueError('a module needs features=True and no weights; to export predictions, give a config')
        graph = build_graph(config.eval(), features=True)
        settings = {'classes': (), 'outputs': (), 'settings': {}, 'steps': (), 'divisor': 1, 'to_rgb': True, **IMAGENET}
        info = ExportInfo(task='features', size=None, batch=None, least=LEAST_SIDE, model='', **settings)
        return graph, info
    cfg, weights = resolve_model(config, weights)
    model, names = build_model(cfg, weights)
    graph = build_graph(model, features=features)
    outputs = () if features else find_outputs(model)
    preprocessor = model.data_preprocessor
    info = ExportInfo(
        task=graph.task,
        outputs=outputs,
        classes=() if features else names,
        steps=_find_steps(cfg),
        size=None,
        batch=None,
        divisor=_find_divisor(preprocessor),
        least=LEAST_SIDE,
        settings={} if features else _find_settings(graph, model),
        model=Path(cfg.filename or '').stem,
        **_find_normalization(preprocessor),
    )
    return graph, info


def _find_normalization(preprocessor: nn.Module) -> dict[str, Any]:
    """Mean and standard deviation of pixel values, and whether BGR becomes RGB."""
    enabled = getattr(preprocessor, '_enable_normalize', False)
    mean = preprocessor.mean.flatten().tolist() if enabled else [0.0] * 3
    std = preprocessor.std.flatten().tolist() if enabled else [1.0] * 3
    if len(mean) != 3:
        raise ValueError(f'the data preprocessor normalizes {len(mean)} channels; only 3 channels are supported')
    to_rgb = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False))
    return {'mean': tuple(mean), 'std': tuple(std), 'to_rgb': bool(to_rgb)}


def _find_divisor(preprocessor: nn.Module) -> int:
    """The multiple to which the data preprocessor pads batches in a test."""
    test = getattr(preprocessor, 'test_cfg', None) or {}
    if test.get('size') is not None:
        raise ValueError(
            f'data_preprocessor.test_cfg pads images to {test["size"]}; remove size there, and use'
            ' size_divisor, or --size HxW for one size'
        )
    return int(getattr(preprocessor, 'pad_size_divisor', None) or test.get('size_divisor') or 1)


def _find_steps(cfg: Any) -> tuple[Mapping[str, Any], ...]:
    """The size rule: what the test pipeline does between loading and packing."""
    settings = find_pipeline(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        loading, *transforms = Compose(settings).transforms
    if getattr(loading, 'color_type', 'color') != 'color' or getattr(loading, 'to_float32', False):
        raise ValueError('the test pipeline loads images as gray or float32; only uint8 color images are supported')
    steps = []
    for one in transforms:
        kind = type(one).__name__
        if kind.startswith('Pack'):
            continue
        step = {'type': kind} | {name: getattr(one, name) for name in _STEP_SETTINGS.get(kind, ())}
        supported = kind in STEPS and step.get('scale', True) and not getattr(one, 'auto_pad', False)
        if supported and 'backend' in step:
            step['backend'] = step['backend'] or 'cv2'
            supported = step['interpolation'] in BACKENDS.get(step['backend'], {})
        if not supported:
            raise ValueError(
                f'the test pipeline has {one!r}, which an exported file does not know; supported: {", ".join(STEPS)}'
            )
        for name in ('scale', 'crop_size'):
            if isinstance(step.get(name), Sequence):
                step[name] = list(step[name])
        steps.append(step)
    return tuple(steps)


_STEP_SETTINGS = {
    'Resize': ('scale', 'keep_ratio', 'interpolation', 'backend'),
    'ResizeEdge': ('scale', 'edge', 'interpolation', 'backend'),
    'CenterCrop': ('crop_size',),
}


def _find_settings(graph: ExportGraph, model: nn.Module) -> dict[str, Any]:
    """Thresholds and numbers of the post-processing."""
    if graph.task == 'queries':
        fusion = model.panoptic_fusion_head
        return {'num_things': fusion.num_things_classes, 'test_cfg': dict(fusion.test_cfg)}
    if graph.task in ('segmentation', 'query_segmentation'):
        test = model.test_cfg or {}
        slide = None
        if test.get('mode') == 'slide':
            slide = {name: [int(side) for side in test[name]] for name in ('crop_size', 'stride')}
        threshold = getattr(model.decode_head, 'threshold', None)
        return {'align_corners': model.align_corners, 'threshold': threshold or 0.5, 'slide': slide}
    return {}


def _with_size(info: ExportInfo, size: tuple[int, int] | None, batch: int | None, graph: ExportGraph) -> ExportInfo:
    """The metadata of a file for one size or for any."""
    crops = [step['crop_size'] for step in info.steps if step['type'] == 'CenterCrop']
    if size is None and crops and graph.task != 'features':
        size = crops[-1][1], crops[-1][0]
    info = replace(info, batch=batch, size=size)
    if size is None:
        least = max(_least_side(graph), 2 * graph.window if graph.window > 1 else 0)
        return replace(info, least=least, divisor=math.lcm(info.divisor, graph.window))
    slide = info.settings.get('slide')
    if slide is not None and size != tuple(slide['crop_size']):
        raise ValueError(
            f'size is {size[0]}x{size[1]}, but the segmentor slides windows of {slide["crop_size"][0]}x'
            f'{slide["crop_size"][1]}: give that size, or dynamic, or set mode="whole" in test_cfg of the model'
        )
    if info.divisor > 1 and any(side % info.divisor for side in size):
        raise ValueError(
            f'size is {size[0]}x{size[1]}, but the data preprocessor pads to multiples of {info.divisor}: give such'
            ' a size'
        )
    return info if slide is not None else replace(info, steps=_fit_steps(info.steps, size))


def _fit_steps(steps: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> tuple[Mapping[str, Any], ...]:
    """The size rule for files of one size: images fit into it."""
    height, width = size
    fitted = []
    for step in steps:
        if step['type'] == 'Resize':
            step = {**step, 'within': [height, width]} if step['keep_ratio'] else {**step, 'scale': [width, height]}
        fitted.append(step)
    crops = [step['crop_size'] for step in fitted if step['type'] == 'CenterCrop']
    if crops and list(crops[-1]) != [width, height]:
        raise ValueError(
            f'size is {height}x{width}, but the test pipeline crops images to {crops[-1][1]}x{crops[-1][0]}: give that'
            ' size, or dynamic'
        )
    return tuple(fitted)


def _least_side(graph: ExportGraph) -> int:
    """The smallest side at which an image has enough positions for the queries."""
    side = LEAST_FREE_SIDE
    with torch.no_grad():
        while True:
            positions, queries = graph.count_positions(torch.zeros(1, 3, side, side))
            if positions >= queries:
                return side
            side += LEAST_SIDE


def _describe(info: ExportInfo) -> str:
    size = 'any size' if info.size is None else f'{info.size[0]}x{info.size[1]}'
    return f'{info.model or info.task} ({info.task}, {size}, {"any batch" if info.batch is None else info.batch})'


# --- calibration ------------------------------------------------------------------------------------------------------


def _calibration_images(source: Any) -> list[Path]:
    """The image files of a source, spread evenly if there are many."""
    data = [item for item in DataSource(source) if item.path is not None and item.error is None]
    if not data:
        raise ValueError(f'calibration {source} has no image files; give a folder of 32 or more')
    index = np.unique(np.linspace(0, len(data) - 1, min(len(data), CALIBRATION_IMAGES)).round().astype(int))
    return [data[one].path for one in index]


def calibration_batches(images: Sequence[Path], info: ExportInfo) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the network for each image, as at prediction."""
    for path in images:
        yield pad_images([prepare_image(read_image(str(path)), info).pixels], info)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(
    model: onnx.ModelProto,
    info: ExportInfo,
    target: Path,
    *,
    format: str,  # noqa: A002
    precision: str,
    images: Sequence[Path] | None,
    report: Callable[[str], None],
) -> None:
    """Convert, quantize and write."""
    info = replace(info, precision=precision)
    if precision == 'int8':
        from mmitpn.deploy import quantize

        keep = quantize.float_layers(info.task)
        info = replace(info, calibration={'images': len(images), 'float_layers': list(keep)})
        report(f'quantizing with {len(images)} images')
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.stem}-') as folder:
        source = Path(folder) / 'model.onnx'
        if format == 'onnx':
            if precision == 'fp16':
                compress_weights(model)
            if precision == 'int8':
                import onnx

                onnx.save(model, source)
                quantized = Path(folder) / 'quantized.onnx'
                quantize.quantize_onnx(source, quantized, calibration_batches(images, info), keep=keep)
                model = onnx.load(quantized)
            set_metadata(model, info)
            write_atomic(target, model.SerializeToString())
            return
        import onnx
        import openvino

        onnx.save(model, source)
        network = openvino.convert_model(source)
        if precision == 'int8':
            network = quantize.quantize_openvino(network, calibration_batches(images, info), keep=keep)
        network.set_rt_info(info.to_json(), [KEY])
        written = Path(folder) / 'model.xml'
        openvino.save_model(network, written, compress_to_fp16=precision == 'fp16')
        written.with_suffix('.bin').replace(target.with_suffix('.bin'))
        written.replace(target)


def write_program(program: torch.export.ExportedProgram, info: ExportInfo, target: Path) -> None:
    """Write a program of torch.export with its metadata."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={KEY: info.to_json()})
    write_atomic(target, content.getvalue())


def compress_weights(model: onnx.ModelProto, *, least: int = 256) -> None:
    """Store the weights in half precision, each with a Cast to fp32, which runtimes fold when they load the file.

    Args:
        model: The model; changed in place.
        least: Smaller tensors stay as they are.

    Raises:
        ValueError: If a weight is beyond the range of half precision.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < least:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f'the weight {tensor.name} has values beyond the range of fp16: use precision fp32')
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f'{name}_fp16'))
        casts.append(helper.make_node('Cast', [f'{name}_fp16'], [name], f'/Cast/{name}', to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


# --- verification -----------------------------------------------------------------------------------------------------


def _verify(target: Path, graph: ExportGraph, info: ExportInfo) -> str:
    """Compare the outputs of a file with those of the model for a synthetic image.

    Raises:
        ValueError: If an fp32 file gives other results.
    """
    try:
        session = load_session(target, trust=True)
    except ImportError as error:
        return f'not verified: {error}'
    generator = np.random.default_rng(0)
    height, width = info.size or (max(info.least, 203), max(info.least, 277))
    coarse = torch.from_numpy(generator.normal(size=(info.batch or 2, 3, 8, 8)).astype(np.float32))
    pixels = nn.functional.interpolate(coarse, size=(height, width), mode='bicubic').numpy()
    inputs = pad_images(list(pixels), info)
    with torch.no_grad():
        expected = graph(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    found = session.run(inputs)
    fractions = []
    for name, values in zip(graph.output_names, expected, strict=True):
        values = values.numpy()
        if values.shape != found[name].shape:
            raise ValueError(f'{target.name} gives {name} of shape {found[name].shape}, the model {values.shape}')
        # Sorted: two objects or queries with nearly equal scores may change places.
        differences = np.abs(np.sort(found[name], axis=None) - np.sort(values, axis=None))
        fractions.append((differences <= 1e-3 * max(float(np.abs(values).max()), 1.0)).mean())
    if session.info.precision == 'fp32' and fractions[0] < 0.98:  # scores or logits: boxes depend on near ties too
        raise ValueError(
            f'{target.name} gives other results than the model: {fractions[0]:.1%} of the {graph.output_names[0]}'
            ' agree; report this with the config'
        )
    if session.info.precision == 'int8':
        return 'runs; to measure its accuracy: mmitpn benchmark MODEL FILE --data CONFIG'
    return f'verified: {min(fractions):.2%} of the values are within 0.1 % of those of the model'
