"""Int8 by the runtimes' own post-training quantization, with the parts of a network that must stay in float.

Both functions take calibration batches: dicts of input name -> array, as the runtime takes them. Height, width and batch
may differ from one to the next. About 32 images give stable ranges; more than 300 change nothing (docs/int8.md). They
should be images as the network meets them in use, preprocessed as for a prediction.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

if TYPE_CHECKING:
    import openvino

Batch = Mapping[str, np.ndarray]
OPERATORS = ('MatMul', 'Gemm', 'Conv')  # those with weights, in ONNX


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def quantize_onnx(
    source: str | Path, target: str | Path, batches: Iterable[Batch], *, keep: Sequence[str] = ()
) -> tuple[str, ...]:
    """Quantize an ONNX model by ONNX Runtime's static quantization, in the format with QuantizeLinear nodes (QDQ).

    Layers with weights (MatMul, Gemm, Conv) take uint8 activations with a zero point, one range per tensor, and int8
    weights, one range per output channel. Products of two activations, as in attention, stay in float.

    Weights use 7 of their 8 bits (``reduce_range``): processors without VNNI add two products of uint8 and int8 in 16
    bits with saturation (``vpmaddubsw``), and 2 * 255 * 127 is more than 32767, but 2 * 255 * 64 is not. The file then
    gives the same results on all processors.

    Args:
        source: The fp32 model, smaller than 2 GB; its nodes have names.
        target: The new file, which is complete or not there.
        batches: Calibration batches, input name -> array; at least one.
        keep: Paths of the modules that stay in float, see :func:`match_names`.

    Returns:
        The names of the quantized nodes.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If there is no batch, one lacks an input of the model, a path matches no node, or nothing is left to
            quantize.
    """
    onnx = _import('onnx', 'onnx')
    quantization = _import('onnxruntime.quantization', 'onnxruntime')
    source, target = Path(source), Path(target)
    graph = onnx.load(source, load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    inputs = [one.name for one in graph.input if one.name not in weights]
    batches = _check_batches(batches, inputs)
    kept = set(match_names([node.name for node in graph.node], keep))
    chosen = [node.name for node in graph.node if _has_weights(node, weights) and node.name not in kept]
    if not chosen:
        raise ValueError(f'keep={list(keep)} leaves nothing of {source.name} to quantize; keep fewer parts')
    target.parent.mkdir(parents=True, exist_ok=True)
    # The library writes beside its input: a folder of our own goes away with all of it.
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as folder, _quiet():
        copy, result = Path(folder, 'source.onnx'), Path(folder, 'int8.onnx')
        shutil.copyfile(source, copy)
        quantization.quantize_static(
            copy,
            result,
            _Reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                'MatMulConstBOnly': True,
                'OpTypesToExcludeOutputQuantization': list(OPERATORS),  # the sums after them stay in float
                'CalibStridedMinMax': 1,  # ranges are merged after each batch, so that memory does not grow
            },
        )
        os.replace(result, target)
    return tuple(chosen)


def _has_weights(node: Any, weights: set[str]) -> bool:
    return node.op_type in OPERATORS and node.input[1] in weights


class _Reader:
    """Calibration batches as ONNX Runtime reads them, with a progress bar."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._size = len(batches)
        self._batches = iter(track(batches, description='Calibration'))
        self._left = 0

    def __len__(self) -> int:
        return self._size

    def set_range(self, start_index: int, end_index: int) -> None:
        """The next calls of :meth:`get_next` give that number of batches, then None."""
        self._left = end_index - start_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        if not self._left:
            return None
        self._left -= 1
        return dict(next(self._batches))


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def quantize_openvino(
    model: openvino.Model, batches: Iterable[Batch], *, keep: Sequence[str] = ()
) -> openvino.Model:
    """Quantize an OpenVINO model by NNCF, for transformers: with smoothing of outliers and bias correction.

    Args:
        model: The fp32 model, which does not change.
        batches: Calibration batches, input name -> array; at least one. They are read several times.
        keep: Paths of the modules that stay in float, see :func:`match_names`; of the friendly names of the nodes.

    Returns:
        The quantized model.

    Raises:
        ImportError: If nncf is not installed.
        ValueError: If there is no batch, one lacks an input of the model, or a path matches no node.
    """
    nncf = _import('nncf', 'nncf')
    batches = _check_batches(batches, [one.any_name for one in model.inputs])
    names = match_names([node.get_friendly_name() for node in model.get_ordered_ops()], keep)
    ignored = nncf.IgnoredScope(names=names, validate=False) if names else None  # it knows no nodes of constants
    return nncf.quantize(
        model,
        nncf.Dataset([dict(batch) for batch in batches]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        ignored_scope=ignored,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


# --- both -------------------------------------------------------------------------------------------------------------


def match_names(names: Iterable[str], keep: Sequence[str]) -> list[str]:
    """The nodes that lie in some modules.

    Args:
        names: Names of nodes, ``/backbone/blocks.3/attn/qkv/MatMul_12``.
        keep: Paths of modules or of single nodes, ``backbone/blocks.3`` or ``/decoder/layers.*/cross_attn``; an
            asterisk is any part of one name between two slashes.

    Returns:
        The names below any of the paths, in their order.

    Raises:
        TypeError: If ``keep`` is a string.
        ValueError: If a path matches no name.
    """
    if isinstance(keep, str):
        raise TypeError(f'keep is the string {keep!r}; give a list of paths')
    names = list(names)
    found: set[str] = set()
    for path in keep:
        parts = path.strip('/').split('/')
        pattern = re.compile('/'.join(re.escape(part).replace(r'\*', '[^/]*') for part in parts) + '(/|$)')
        matches = {name for name in names if pattern.match(name.lstrip('/'))}
        if not matches:
            seen = sorted({'/'.join(name.lstrip('/').split('/')[: len(parts)]) for name in names})
            raise ValueError(f'{path!r} in keep is no part of this model; its parts are {", ".join(seen[:20])}')
        found |= matches
    return [name for name in names if name in found]


def _check_batches(batches: Iterable[Batch], inputs: Sequence[str]) -> Sequence[Batch]:
    """The batches, of which there are some, with all inputs of a model."""
    if not isinstance(batches, Sequence):
        batches = list(batches)
    if not batches:
        raise ValueError('there is no image to calibrate int8 with; give about 32 images like those of later use')
    missing = [name for name in inputs if name not in batches[0]]
    if missing:
        raise ValueError(f'the calibration batches have {", ".join(batches[0])}, but the model also takes {missing}')
    return batches


def _import(module: str, package: str) -> Any:
    """A module that only int8 needs."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'int8 needs {error.name}: pip install {package}', name=error.name) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ONNX Runtime's advice on optimizing the graph first, which it logs twice."""

    def relevant(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith('Please consider')

    root = logging.getLogger()
    root.addFilter(relevant)
    try:
        yield
    finally:
        root.removeFilter(relevant)
