"""Sessions of the runtimes on the CPU: ONNX Runtime for ``.onnx``, OpenVINO for ``.xml``, torch for ``.pt2``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmitpn.deploy.metadata import KEY, ExportInfo
from mmitpn.utils import check_int

SUFFIXES = {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'torch'}
FORMATS = tuple(SUFFIXES.values())


def format_of(path: str | os.PathLike) -> str | None:
    """The format of an exported file by its ending; None for another ending."""
    return SUFFIXES.get(Path(path).suffix.lower())


def import_runtime(name: str, package: str, what: str) -> Any:
    """Import a package of a runtime or exporter.

    Args:
        name: The module.
        package: What pip installs.
        what: What needs it, for the message.

    Raises:
        ImportError: If it is not installed, with the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        if error.name is not None and error.name.partition('.')[0] not in (name.partition('.')[0], package):
            raise
        raise ImportError(f'{what} needs {package}: pip install {package}', name=name) from error


class OnnxSession:
    """A network in ONNX Runtime.

    Args:
        path: The ``.onnx`` file.
        threads: Number of threads; None: those of the processor.

    Attributes:
        info: The metadata of the file.
        inputs: Names of its inputs.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        runtime = import_runtime('onnxruntime', 'onnxruntime', f'{path.name} (ONNX)')
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has its own kinds
            raise ValueError(f'{path} cannot be loaded by ONNX Runtime: {_first_line(error)}') from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info = ExportInfo.from_json(metadata.get(KEY), path)
        self.inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. Inputs that the network does not have are left out."""
        values = self._session.run(self._outputs, {name: inputs[name] for name in self.inputs})
        return dict(zip(self._outputs, values, strict=True))


class OpenVinoSession:
    """A network in OpenVINO.

    Args:
        path: The ``.xml`` file, beside its ``.bin``.
        threads: Number of threads; None: those of the processor.
        exact: Compute in fp32 also on processors with bf16; False: as OpenVINO chooses.

    Attributes:
        info: The metadata of the file.
        inputs: Names of its inputs.
    """

    def __init__(self, path: Path, *, threads: int | None = None, exact: bool = True) -> None:
        openvino = import_runtime('openvino', 'openvino', f'{path.name} (OpenVINO)')
        if not path.with_suffix('.bin').is_file():
            raise FileNotFoundError(f'{path} has no {path.with_suffix(".bin").name} beside it: copy both files')
        core = openvino.Core()
        try:
            network = core.read_model(path)
        except RuntimeError as error:
            raise ValueError(f'{path} cannot be loaded by OpenVINO: {_first_line(error)}') from None
        metadata = network.get_rt_info(KEY).value if network.has_rt_info(KEY) else None
        self.info = ExportInfo.from_json(metadata, path)
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'} if exact else {}
        if threads is not None:
            settings['INFERENCE_NUM_THREADS'] = threads
        self._compiled = core.compile_model(network, 'CPU', settings)
        self.inputs = [one.get_any_name() for one in self._compiled.inputs]
        self._outputs = [one.get_any_name() for one in self._compiled.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. Inputs that the network does not have are left out."""
        values = self._compiled({name: inputs[name] for name in self.inputs})
        return {name: values[index] for index, name in enumerate(self._outputs)}


class TorchSession:
    """A program of ``torch.export``.

    Args:
        path: The ``.pt2`` file, which may execute code when torch reads it: its source must be trusted.

    Attributes:
        info: The metadata of the file.
        inputs: Names of its inputs.
    """

    def __init__(self, path: Path) -> None:
        metadata = {KEY: ''}
        try:
            program = torch.export.load(path, extra_files=metadata)
        except Exception as error:  # noqa: BLE001 - whatever a damaged file raises
            raise ValueError(f'{path} cannot be loaded by torch.export: {_first_line(error)}') from None
        self.info = ExportInfo.from_json(metadata[KEY], path)
        self.inputs = list(program.graph_signature.user_inputs)
        self._module = program.module()
        self._outputs = self.info.settings['outputs']

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. Inputs that the network does not have are left out."""
        with torch.no_grad():
            values = self._module(*(torch.from_numpy(inputs[name]) for name in self.inputs))
        values = (values,) if isinstance(values, torch.Tensor) else values
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}


Session = OnnxSession | OpenVinoSession | TorchSession


def load_session(path: str | os.PathLike, *, threads: int | None = None, trust: bool = False) -> Session:
    """Load an exported network.

    Args:
        path: A ``.onnx``, ``.xml`` or ``.pt2`` file of ``mmitpn export``.
        threads: Number of threads; None: those of the processor. torch's own number counts for ``.pt2``.
        trust: Whether the source of a ``.pt2`` file is trusted: torch may execute what is in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If its runtime is not installed.
        ValueError: If the file is damaged, was not written by mmitpn, or is not trusted.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no file {path} (seen from {Path.cwd()})')
    kind = format_of(path)
    if kind is None:
        raise ValueError(f'{path}: {path.suffix!r} is not a suffix of exported files; allowed: {", ".join(SUFFIXES)}')
    if threads is not None:
        check_int('threads', threads)
    if kind == 'torch':
        if not trust:
            raise ValueError(
                f'{path}: torch may execute what is in a .pt2 file; set trust=True (--trust) if you trust its source,'
                ' or use a file for ONNX Runtime or OpenVINO'
            )
        return TorchSession(path)
    return (OnnxSession if kind == 'onnx' else OpenVinoSession)(path, threads=threads)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
