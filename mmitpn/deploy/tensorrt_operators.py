"""Which operators of an ONNX file TensorRT supports, by NVIDIA's list.

The list is ``docs/operators.md`` of https://github.com/onnx/onnx-tensorrt, in the version of TensorRT 10.15: operators,
element types and limits. The source of NVIDIA's parser (``onnxOpImporters.cpp`` there, TensorRT 10.1) accepts more for
Clip, Equal, NonZero and Resize, and less for GridSample; there the source is followed. Whether an engine computes the
right numbers is another question, which only a comparison with ONNX Runtime answers (docs/tensorrt.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmitpn.deploy.runtimes import import_runtime

LIST_VERSION = 'TensorRT 10.15'
OPSETS = (9, 24)

_FLOATS = frozenset({'FLOAT', 'FLOAT16', 'BFLOAT16', 'DOUBLE'})  # DOUBLE is cast to FLOAT
_NUMBERS = _FLOATS | {'INT32', 'INT64'}
_ALL = _NUMBERS | {'BOOL'}
_HALF = _FLOATS - {'BFLOAT16'}
_QUANTIZED = frozenset({'INT8', 'INT4', 'FLOAT8E4M3FN', 'FLOAT4E2M1'})

# Operators by the element types of their data.
_OPERATORS = {
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
        Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
        LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform
        RandomUniformLike Reciprocal Resize RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus
        Softsign Sqrt Tan Tanh ThresholdedRelu Upsample
    """,
    _HALF: 'BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign STFT',
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod
        Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TensorScatter
        TopK
    """,
    _ALL: """
        Cast CastLike Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If
        Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
    """,
    frozenset({'BOOL'}): 'And Not Or Xor',
    _QUANTIZED: 'DequantizeLinear',
}
_TYPES = {name: types for types, names in _OPERATORS.items() for name in names.split()}
_TYPES |= {
    'Cast': _ALL | {'UINT8'},
    'CastLike': _ALL | {'UINT8'},
    'Clip': _NUMBERS,  # these three by the parser's source
    'Equal': _ALL,
    'NonZero': _ALL,
}

SUPPORTED = frozenset(_TYPES)
_DATA_INPUT = {'Where': 1}  # index of the input whose element type counts, where it is not the first


def check_tensorrt(path: str | os.PathLike) -> list[str]:
    """Name what TensorRT does not support in an ONNX file, by NVIDIA's list.

    Args:
        path: The ONNX file. Weights beside it are not read.

    Returns:
        A line for each operator that the list lacks, or whose element type, attribute or input it excludes, with
        the number of its nodes and the name of the first; an empty list where everything is supported. An input that
        the graph computes counts as allowed where the list restricts only its value.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If onnx is not installed.
        ValueError: If it is no ONNX file.
    """
    graph = _Graph(Path(path))
    found: dict[str, list[str]] = {}
    for node in graph.nodes():
        problem = _problem(node, graph)
        if problem is not None:
            found.setdefault(f'{_title(node)} {problem}', []).append(node.name or 'without a name')
    low, high = OPSETS
    problems = [] if low <= graph.opset <= high else [f'opset {graph.opset} is outside {low} to {high}']
    return problems + [
        f'{text} ({len(names)} node{"s" * (len(names) > 1)}: {names[0]}{", ..." * (len(names) > 1)})'
        for text, names in sorted(found.items())
    ]


class _Graph:
    """An ONNX model without its large weights: nodes, element types, constants."""

    def __init__(self, path: Path) -> None:
        onnx = import_runtime('onnx', 'onnx', 'checking an ONNX file')
        if not path.is_file():
            raise FileNotFoundError(f'no file {str(path)!r} (seen from {Path.cwd()})')
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError, whose module differs between versions
            raise ValueError(f'{path} is no ONNX file ({type(error).__name__})') from error
        if not model.graph.node:
            raise ValueError(f'{path} is no ONNX file, or one without operators')
        self._onnx = onnx
        self.opset = next((one.version for one in model.opset_import if one.domain in ('', 'ai.onnx')), 0)
        self.functions = {(one.domain, one.name) for one in model.functions}
        self._bodies = [model.graph, *model.functions]
        self._constants: dict[str, Any] = {}
        for one in model.graph.initializer:
            self._constants[one.name] = self._small(one)
            one.ClearField('raw_data')  # the types below need shapes alone
        for node in self.nodes():
            if node.op_type == 'Constant':
                value = next((one for one in node.attribute if one.name.startswith('value')), None)
                array = self._small(value.t) if value is not None and value.name == 'value' else None
                if value is not None and value.name != 'value':
                    array = np.asarray(onnx.helper.get_attribute_value(value))
                self._constants[node.output[0]] = array
        self._types, self._ranks = {}, {}
        graph = onnx.shape_inference.infer_shapes(model).graph
        for one in (*graph.value_info, *graph.input, *graph.output):
            kind = one.type.tensor_type
            self._types[one.name] = onnx.TensorProto.DataType.Name(kind.elem_type)
            self._ranks[one.name] = len(kind.shape.dim) if kind.HasField('shape') else None
        for one in graph.initializer:
            self._types[one.name] = onnx.TensorProto.DataType.Name(one.data_type)
            self._ranks[one.name] = len(one.dims)

    def _small(self, tensor: Any) -> np.ndarray | None:
        """A constant of a few values; None for a large one or one in another file."""
        if tensor.data_location == tensor.EXTERNAL or np.prod(tensor.dims, dtype=np.int64) > 65_536:
            return None
        return self._onnx.numpy_helper.to_array(tensor)

    def nodes(self) -> Iterator[Any]:
        """All nodes, also of functions and of the branches of If and Loop."""
        bodies = list(self._bodies)
        while bodies:
            for node in bodies.pop().node:
                yield node
                bodies += [one.g for one in node.attribute if one.type == one.GRAPH]

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def constant(self, node: Any, index: int) -> np.ndarray | None:
        """Value of an input; None where there is none, it is computed or it is large."""
        return self._constants.get(node.input[index]) if self.has(node, index) else None

    def has(self, node: Any, index: int) -> bool:
        return len(node.input) > index and bool(node.input[index])

    def type(self, name: str) -> str:
        return self._types.get(name, 'UNDEFINED')

    def rank(self, name: str) -> int | None:
        return self._ranks.get(name)

    def attribute(self, node: Any, name: str, default: Any) -> Any:
        for one in node.attribute:
            if one.name == name:
                value = self._onnx.helper.get_attribute_value(one)
                return value.decode() if isinstance(value, bytes) else value
        return default


def _title(node: Any) -> str:
    return f'{node.domain}.{node.op_type}' if node.domain not in ('', 'ai.onnx') else node.op_type


def _problem(node: Any, graph: _Graph) -> str | None:
    """What the list excludes of a node; None where it is supported."""
    if (node.domain, node.op_type) in graph.functions:
        return None  # its body is checked
    if node.domain not in ('', 'ai.onnx'):
        return 'is not an operator of ONNX: it needs a plugin'
    if node.op_type not in SUPPORTED:
        return f'is not supported by {LIST_VERSION}'
    index = _DATA_INPUT.get(node.op_type, 0)
    if graph.has(node, index):
        kind = graph.type(node.input[index])
        if kind not in _TYPES[node.op_type] and kind != 'UNDEFINED':
            return f'is not supported for {kind}'
    check = _LIMITS.get(node.op_type)
    return check(node, graph) if check else None


# --- limits of single operators --------------------------------------------------------------------------------------


def _topk(node: Any, graph: _Graph) -> str | None:
    if graph.attribute(node, 'sorted', 1) != 1:
        return 'is not supported with sorted = 0'
    k = graph.constant(node, 1)
    return f'is not supported with K = {k.item()}: K must be less than 3840' if k is not None and k >= 3840 else None


def _resize(node: Any, graph: _Graph) -> str | None:
    for name, default, allowed in (
        (
            'coordinate_transformation_mode', 'half_pixel',
            ('half_pixel', 'pytorch_half_pixel', 'tf_half_pixel_for_nn', 'asymmetric', 'align_corners'),
        ),
        ('mode', 'nearest', ('nearest', 'linear', 'cubic')),  # cubic by the parser's source
        ('nearest_mode', 'round_prefer_floor', ('floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil')),
        ('keep_aspect_ratio_policy', 'stretch', ('stretch',)),
        ('antialias', 0, (0,)),
    ):  # fmt: skip
        value = graph.attribute(node, name, default)
        if value not in allowed:
            return f'is not supported with {name} = {value}'
    return None


def _grid_sample(node: Any, graph: _Graph) -> str | None:
    rank, mode = graph.rank(node.input[0]), graph.attribute(node, 'mode', 'bilinear')
    if mode in ('linear', 'cubic'):  # the parser knows bilinear and bicubic, the names before opset 20
        return f'is read as nearest with mode = {mode}, the name since opset 20: export with opset 18'
    return f'is not supported for inputs of {rank} dimensions, only for 4' if rank not in (4, None) else None


def _pool(node: Any, graph: _Graph) -> str | None:
    if len(graph.attribute(node, 'kernel_shape', (1, 1))) not in (2, 3):
        return 'is supported in 2D and 3D only'
    if any(one != 1 for one in graph.attribute(node, 'dilations', ())):
        return 'is not supported with dilations'
    return _first_output(node, graph) if node.op_type == 'MaxPool' else None


def _first_output(node: Any, graph: _Graph) -> str | None:  # noqa: ARG001 - one signature for all
    return 'is supported with its first output only' if any(node.output[1:]) else None


def _reduction(node: Any, graph: _Graph) -> str | None:
    value = graph.attribute(node, 'reduction', 'none')
    return f'is not supported with reduction = {value}' if value != 'none' else None


def _zero_point(node: Any, graph: _Graph) -> str | None:
    """Quantization must be symmetric and signed; the type of DequantizeLinear is checked as its data's."""
    if not graph.has(node, 2):
        return 'is not supported for UINT8' if node.op_type == 'QuantizeLinear' else None
    kind, value = graph.type(node.input[2]), graph.constant(node, 2)
    if kind not in (*_QUANTIZED, 'UNDEFINED'):
        return f'is not supported for {kind}'
    if value is not None and np.any(value.astype(np.float32) != 0):
        return 'is not supported with a zero point that is not 0'
    return None


def _constant_input(index: int, name: str) -> Callable[[Any, _Graph], str | None]:
    def check(node: Any, graph: _Graph) -> str | None:
        is_computed = graph.has(node, index) and not graph.is_constant(node.input[index])
        return f'is not supported with {name} that the graph computes' if is_computed else None

    return check


_LIMITS: dict[str, Callable[[Any, _Graph], str | None]] = {
    'TopK': _topk,
    'Resize': _resize,
    'GridSample': _grid_sample,
    'AveragePool': _pool,
    'MaxPool': _pool,
    'LayerNormalization': _first_output,
    'ScatterND': _reduction,
    'QuantizeLinear': _zero_point,
    'DequantizeLinear': _zero_point,
    'CumSum': _constant_input(1, 'an axis'),
    'OneHot': _constant_input(1, 'a depth'),
    'Squeeze': _constant_input(1, 'axes'),
    'Unsqueeze': _constant_input(1, 'axes'),
    **{name: _constant_input(1, 'axes') for name in SUPPORTED if name.startswith('Reduce')},
}
