"""Int8 by the runtimes' own post-training quantization, with the parts of a network that must stay in float.

Both functions take calibration batches: dicts of input name -> array, as the runtime takes them. Batch size, height and
width may differ from one to the next. They come from images like those of later use, preprocessed as for a prediction;
docs/int8.md says how many are useful.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from mmitpn.deploy.metadata import TASKS
from mmitpn.deploy.runtimes import import_runtime

if TYPE_CHECKING:
    import openvino

Batch = Mapping[str, np.ndarray]
OPERATORS = ('MatMul', 'Gemm', 'Conv')  # those with weights, in ONNX


# --- what stays in float ----------------------------------------------------------------------------------------------

_FINE = 'a rounding error here reaches all later layers: alone it changes the predictions of DINO by {} %'
# Path of a module (see match_names) -> the measured reason: docs/int8.md.
_STEM = {
    '/backbone/patch_embed': _FINE.format('1.8 to 2.7'),
    '/backbone/stage1.*': _FINE.format('1.7 to 1.9'),
    '/backbone/merge1': _FINE.format('1.4 to 1.5'),
    '/backbone/stage2.*': _FINE.format('1.8 to 1.9'),
    '/backbone/merge2': _FINE.format('0.7 to 0.8'),
}
# Task -> what stays in float.
PRESETS: Mapping[str, Mapping[str, str]] = dict.fromkeys(TASKS, _STEM)


def float_layers(task: str) -> tuple[str, ...]:
    """The parts that stay in float in int8 files.

    Args:
        task: Of :data:`mmitpn.deploy.metadata.TASKS`.

    Returns:
        Their paths, for ``keep`` of the functions below.

    Raises:
        ValueError: If there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f'task is {task!r}; allowed: {", ".join(TASKS)}')
    return tuple(PRESETS.get(task, ()))


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
        batches: Calibration batches, input name -> array; at least one. Inputs that the model does not have are left
            out. All are in memory at once.
        keep: Paths of the modules that stay in float, see :func:`match_names`.

    Returns:
        The names of the quantized nodes.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If there is no batch, one lacks an input of the model, or nothing is left to quantize.
    """
    onnx = import_runtime('onnx', 'onnx', 'int8')
    quantization = import_runtime('onnxruntime.quantization', 'onnxruntime', 'int8 for ONNX')
    source, target = Path(source), Path(target)
    graph = onnx.load(source, load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    inputs = [one.name for one in graph.input if one.name not in weights]
    batches = _read_batches(batches, inputs)
    kept = set(match_names([node.name for node in graph.node], keep))
    chosen = [node.name for node in graph.node if _has_weights(node, weights) and node.name not in kept]
    if not chosen:
        raise ValueError(f'keep={list(keep)} leaves nothing of {source.name} to quantize; keep fewer parts')
    target.parent.mkdir(parents=True, exist_ok=True)
    # The library writes beside its input: a folder of our own goes away with all of it.
    with (
        tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as folder,
        _quiet(),
        Progress() as bar,
    ):
        copy, result = Path(folder, 'source.onnx'), Path(folder, 'int8.onnx')
        shutil.copyfile(source, copy)
        quantization.quantize_static(
            copy,
            result,
            _Reader(batches, bar),
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
        result.replace(target)
    return tuple(chosen)


def _has_weights(node: Any, weights: set[str]) -> bool:
    return node.op_type in OPERATORS and node.input[1] in weights


class _Reader:
    """Calibration batches as ONNX Runtime reads them, with a progress bar."""

    def __init__(self, batches: Sequence[dict[str, np.ndarray]], progress: Progress) -> None:
        self._batches, self._progress = batches, progress
        self._task = progress.add_task('Calibration', total=len(batches))
        self._next = self._end = 0

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The next calls of :meth:`get_next` give these batches, then None."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self._next == self._end:
            self._progress.update(self._task, completed=self._end)
            return None
        self._next += 1
        return self._batches[self._next - 1]


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def quantize_openvino(model: openvino.Model, batches: Iterable[Batch], *, keep: Sequence[str] = ()) -> openvino.Model:
    """Quantize an OpenVINO model by NNCF, for transformers: with smoothing of outliers and bias correction.

    Weights have 7 bits, as of :func:`quantize_onnx`; :func:`find_pooling` stays in float.

    Args:
        model: The fp32 model, which does not change.
        batches: As of :func:`quantize_onnx`.
        keep: Paths of the modules that stay in float, see :func:`match_names`; of the friendly names of the nodes.

    Returns:
        The quantized model.

    Raises:
        ImportError: If nncf is not installed.
        ValueError: If there is no batch, or one lacks an input of the model.
    """
    nncf = import_runtime('nncf', 'nncf', 'int8 for OpenVINO')
    batches = _read_batches(batches, [one.any_name for one in model.inputs])
    names = match_names([node.get_friendly_name() for node in model.get_ordered_ops()], keep)
    names += [name for name in find_pooling(model) if name not in names]
    ignored = nncf.IgnoredScope(names=names, validate=False) if names else None  # it knows no nodes of constants
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        ignored_scope=ignored,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


def find_pooling(model: openvino.Model) -> list[str]:
    """Products with a matrix that is computed from the sizes of maps: adaptive pooling, resized positional embeddings.

    They stay in float: NNCF wants symmetric ranges for them, but not for convolutions of the same map, and raises an
    internal error when the two meet in one concatenation, as in UperNet.

    Args:
        model: The model.

    Returns:
        The friendly names of the MatMul nodes.
    """
    constant, sizes, values = range(3)
    kinds: dict[str, int] = {}
    found = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        inputs = [kinds[one.get_node().get_name()] for one in node.input_values()]
        own = {'Parameter': values, 'ShapeOf': sizes}.get(kind, max(inputs, default=constant))
        kinds[node.get_name()] = own
        if kind == 'MatMul' and sizes in inputs:
            found.append(node.get_friendly_name())
    return found


# --- both -------------------------------------------------------------------------------------------------------------


def match_names(names: Iterable[str], keep: Sequence[str]) -> list[str]:
    """The nodes that lie in some modules.

    Args:
        names: Names of nodes, ``/backbone/blocks.3/attn/qkv/MatMul_12``.
        keep: Paths of modules or single nodes, ``/backbone/blocks.3`` or ``/decoder/layers.*/cross_attn``; an asterisk
            is any part of one name between two slashes. A path that no node has is left out: a preset serves several
            models.

    Returns:
        The names equal to or below any of the paths, in their order.

    Raises:
        TypeError: If ``keep`` is a string.
    """
    if isinstance(keep, str):
        raise TypeError(f'keep is the string {keep!r}; give a list of paths')
    names = list(names)
    found = set(keep) & set(names)  # single nodes, of which there may be a thousand
    paths = [path.strip('/') for path in keep if path not in found]
    if paths:
        pattern = re.compile('(' + '|'.join(re.escape(path).replace(r'\*', '[^/]*') for path in paths) + ')(/|$)')
        found |= {name for name in names if pattern.match(name.lstrip('/'))}
    return [name for name in names if name in found]


def _read_batches(batches: Iterable[Batch], inputs: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The calibration batches, of which there are some, with the inputs of a model and no others."""
    batches = list(batches)
    if not batches:
        raise ValueError('there is no image to calibrate int8 with; give some like those of later use')
    missing = [name for name in inputs if name not in batches[0]]
    if missing:
        raise ValueError(f'the calibration batches have {", ".join(batches[0])}, but the model takes {missing} too')
    return [{name: batch[name] for name in inputs} for batch in batches]


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
