"""A graph as an ONNX file: exported by torch, its nodes named by the modules that they come from."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ExportedProgram

from mmitpn.deploy.graph import ExportGraph, exchanged_for_export
from mmitpn.deploy.metadata import KEY, ExportInfo
from mmitpn.deploy.runtimes import import_runtime

if TYPE_CHECKING:
    import onnx

OPSET = 18
LARGEST_SIDE, LARGEST_BATCH = 2**14, 2**12
_SCOPES = 'pkg.torch.onnx.name_scopes'


def export_program(
    graph: ExportGraph, example: tuple[int, int, int], *, info: ExportInfo, grid_sample: str = 'native'
) -> ExportedProgram:
    """Trace a graph by ``torch.export``.

    Args:
        graph: The graph, in evaluation mode on the CPU.
        example: Batch size, height and width for tracing. What ``info`` leaves free stays free.
        info: ``size``, ``batch`` and ``least`` of the file.
        grid_sample: ``native`` or ``gather``.

    Raises:
        RuntimeError: If torch cannot trace it.
    """
    batch, height, width = example
    if info.size is None:
        height, width = (-(-side // graph.window) * graph.window for side in (height, width))
    inputs = (torch.zeros(batch, len(info.mean), height, width), torch.zeros(batch, height, width, dtype=torch.bool))
    free = {} if info.batch is not None else {'batch': Dim('batch', min=1, max=LARGEST_BATCH)}
    if info.size is None:
        step = graph.window  # 1: any size
        free |= {
            side: step * Dim(side, min=-(-info.least // step), max=LARGEST_SIDE // step) for side in ('height', 'width')
        }
    axes = ({0: 'batch', 2: 'height', 3: 'width'}, {0: 'batch', 1: 'height', 2: 'width'})
    shapes = tuple({axis: free[name] for axis, name in one.items() if name in free} for one in axes)
    number = len(graph.input_names)
    with torch.no_grad(), exchanged_for_export(graph, dynamic=info.size is None, grid_sample=grid_sample), _quiet():
        program = torch.export.export(
            graph, inputs[:number], dynamic_shapes=shapes[:number], prefer_deferred_runtime_asserts_over_guards=True
        )
    _drop_assertions(program)
    return program


def _drop_assertions(program: ExportedProgram) -> None:
    """Remove the assertions about sizes, which say what held for the example: the operators take other sizes too.

    Whether they give the same there is compared after each export, at other sizes than the example's.
    """
    for node in reversed(program.graph.nodes):
        if '_assert' in str(node.target):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def to_onnx(program: ExportedProgram, graph: ExportGraph, info: ExportInfo) -> onnx.ModelProto:
    """An ONNX model of standard operators, with the metadata inside.

    Args:
        program: Of :func:`export_program`.
        graph: The graph, for the names of inputs and outputs.
        info: The metadata.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If the model has operators that are not standard.
    """
    onnx = import_runtime('onnx', 'onnx', 'the export')
    import_runtime('onnxscript', 'onnxscript', 'the export')
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            custom_translation_table={round: _translate_round},
            optimize=True,
            verbose=False,
        )
    model = converted.model_proto
    _name_nodes(model)
    _name_sizes(model, info)
    set_metadata(model, info)
    custom = sorted({node.domain for node in model.graph.node} - {'', 'ai.onnx'})
    if custom or model.functions:
        raise ValueError(f'the exported model has operators of {custom or "functions"}, which runtimes do not know')
    onnx.checker.check_model(model)
    return model


def _translate_round(number: Any, digits: Any = None) -> Any:
    """Python's ``round`` of a number that depends on sizes: half to even in both."""
    from onnx import TensorProto
    from onnxscript import opset18

    del digits
    return opset18.Cast(opset18.Round(opset18.Cast(number, to=TensorProto.FLOAT)), to=TensorProto.INT64)


def set_metadata(model: onnx.ModelProto, info: ExportInfo) -> None:
    """Write the metadata into a model, in place of what is there."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=info.to_json())
    model.producer_name, model.producer_version, model.doc_string = 'mmitpn', info.version, ''


def module_of(node: onnx.NodeProto) -> str:
    """The module path that a node comes from, as torch's exporter records it; '' if it is not known."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [scope for scope in ast.literal_eval(entry.value) if scope and not scope.startswith('_empty')]
            paths = scopes[:-1] if len(scopes) > 1 else []
            return re.sub(r'^model\.', '', paths[-1]) if paths else ''
    return ''


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes ``/backbone/blocks.3/attn/qkv/MatMul_1``, and drop what the exporter noted on them.

    Its notes hold the paths of source files.
    """
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        path = module_of(node).replace('.', '/')
        path = re.sub(r'/(\d+)(?=/|$)', r'.\1', path)
        name = f'/{path}/{node.op_type}' if path else f'/{node.op_type}'
        counts[name] += 1
        node.name = name if counts[name] == 1 else f'{name}_{counts[name] - 1}'
        del node.metadata_props[:]
        node.doc_string = ''
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _name_sizes(model: onnx.ModelProto, info: ExportInfo) -> None:
    """Name the free sizes of the inputs; the exporter's names are expressions of symbols."""
    for value in model.graph.input:
        names = ('batch', 'height', 'width') if value.name == 'padding_mask' else ('batch', '', 'height', 'width')
        for name, size in zip(names, value.type.tensor_type.shape.dim, strict=True):
            fixed = info.batch if name == 'batch' else info.size
            if name and fixed is None:
                size.Clear()
                size.dim_param = name


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the notes and warnings of torch's exporter."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)
