"""One model in a process of its own: :class:`ModelProcess` starts ``python -m mmitpn.benchmark.format_worker``.

Requests are JSON lines on the standard input, answers JSON lines on the standard output: ``{"ok": ...}``,
``{"error": "...", "user": true}`` after a mistake of the user, or, before them, ``{"progress": [done, total]}``. What
libraries print goes to the standard error.

An exported file is timed by its session alone, so that the memory of the process is that of the runtime. An eager
model is timed by the module that would be exported: the same inputs and outputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mmitpn.openmp import bound_spinning
from mmitpn.ops.install import explain_import

from .memory import process_peak_bytes
from .worker import process_environment

Run = Callable[[Mapping[str, np.ndarray]], Any]
# A user's, in a file, config or option; KeyError and AssertionError come from the frameworks.
MISTAKES = (ValueError, TypeError, KeyError, AssertionError, OSError, ImportError, SyntaxError)
LIBRARIES = {'.onnx': ('onnxruntime', 'ONNX Runtime'), '.xml': ('openvino', 'OpenVINO')}


# --- in the process of the model --------------------------------------------------------------------------------------


class FormatWorker:
    """Loads one model and measures it on request; each public method answers one request."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._inputs: dict[int, dict[str, np.ndarray]] = {}
        self._predictor: Any = None
        self._image: np.ndarray | None = None
        self._load_predictor: Callable[[], Any] | None = None

    # loading

    def load_file(self, path: str, threads: int) -> dict[str, Any]:
        """Load an exported file.

        Args:
            path: The file.
            threads: Number of threads.

        Returns:
            Facts about the model; ``imports_bytes`` is the peak memory before it was loaded.
        """
        library, runtime = LIBRARIES[Path(path).suffix.lower()]
        try:
            version = f'{runtime} {import_module(library).__version__.partition("-")[0]}'
        except ImportError:  # the session says which command installs it
            version = runtime
        from mmitpn.deploy.runtimes import load_session

        imports, start = process_peak_bytes(), time.perf_counter()
        session = load_session(path, threads=threads)
        self._run = session.run

        def load_predictor() -> Any:
            from mmitpn.apis.predictor import Predictor

            return Predictor(path, threads=threads)

        self._load_predictor = None if session.info.task == 'features' else load_predictor
        is_onnx = Path(path).suffix.lower() == '.onnx'
        weights = Path(f'{path}.data') if is_onnx else Path(path).with_suffix('.bin')
        return {
            'runtime': version,
            'precision': session.info.precision,
            'outputs': list(session.info.outputs) or ['features'],
            'classes': list(session.info.classes),
            'size': session.info.size,
            'least': session.info.least if session.info.size is None else 1,
            'batch': session.info.batch,
            'file_bytes': sum(file.stat().st_size for file in (Path(path), weights) if file.is_file()),
            'imports_bytes': imports,
            'load_seconds': time.perf_counter() - start,
        }

    def load_eager(self, config: str, weights: str | None, threads: int, *, features: bool) -> dict[str, Any]:
        """Build the model of a config in fp32.

        Args:
            config: Config or name of a complete model.
            weights: Its checkpoint; None for those of a complete model.
            threads: Number of threads.
            features: Run backbone and neck only.
        """
        import torch

        from mmitpn.apis.model_loading import resolve_model
        from mmitpn.apis.predictor import Predictor
        from mmitpn.deploy.graph import build_graph

        torch.set_num_threads(threads)
        cfg, _ = resolve_model(config, weights)
        if cfg.get('default_scope') in ('mmdet', 'mmseg', 'mmpretrain'):
            import_module(f'{cfg.default_scope}.models')  # not counted as memory of the model
        imports, start = process_peak_bytes(), time.perf_counter()
        predictor = Predictor(config, weights, device='cpu')
        graph = build_graph(predictor.model, features=features)
        seconds = time.perf_counter() - start

        def run(inputs: Mapping[str, np.ndarray]) -> Any:
            with torch.no_grad():
                return graph(*(torch.from_numpy(inputs[name]) for name in graph.input_names))

        self._run = run
        self._load_predictor = None if features else lambda: predictor
        source = Path(predictor.weights).expanduser()
        files = [file for file in source.rglob('*') if file.is_file()] if source.is_dir() else [source]
        return {
            'runtime': f'PyTorch {torch.__version__.partition("+")[0]}',
            'precision': 'fp32',
            'outputs': ['features'] if features else list(predictor.outputs),
            'classes': list(predictor.names),
            'size': None,
            'least': 1,
            'batch': None,
            'file_bytes': sum(file.stat().st_size for file in files) if source.exists() else None,
            'imports_bytes': imports,
            'load_seconds': seconds,
        }

    # speed and memory

    def prepare(self, size: list[int], batches: list[int], image: str | None) -> dict[str, Any]:
        """Make the inputs and run each batch once, smallest first.

        Args:
            size: Height and width of the inputs.
            batches: Numbers of images.
            image: Path of the image for the whole of ``Predictor``; None: a random one.

        Returns:
            ``peak_bytes``: batch size -> peak memory of the process once it has run.
        """
        height, width = size
        generator = np.random.default_rng(0)
        peaks = {}
        for batch in sorted(batches):
            self._inputs[batch] = {
                'images': generator.standard_normal((batch, 3, height, width), dtype=np.float32),
                'padding_mask': np.zeros((batch, height, width), dtype=bool),
            }
            self._run(self._inputs[batch])
            peaks[batch] = process_peak_bytes()
        self._image = _read_image(image) if image else generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return {'peak_bytes': peaks}

    def time_network(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each run of the network on a batch, for about ``seconds``."""
        inputs = self._inputs[batch]
        return _repeat(lambda: self._run(inputs), seconds)

    def time_predictor(self, seconds: float) -> list[float]:
        """Seconds of the whole of ``Predictor`` on one image in memory: preprocessing, network, post-processing."""
        predictor = self._get_predictor()
        return [] if predictor is None else _repeat(lambda: list(predictor.predict(self._image)), seconds)

    def _get_predictor(self) -> Any:
        if self._predictor is None and self._load_predictor is not None:
            self._predictor = self._load_predictor()
        return self._predictor

    # accuracy

    def evaluate(
        self, config: str, options: list[str], images: int | None, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        """The metrics of a config on its test dataset, see :func:`~mmitpn.benchmark.accuracy.evaluate_predictor`."""
        from .accuracy import TestData, evaluate_predictor

        data = TestData.read(config, options)
        return evaluate_predictor(self._get_predictor(), data, images=images, progress=progress)


def _repeat(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each run. The first one, after another process has used the caches, counts only if it is long."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if times[0] > seconds:
            return times
    return times[1:]


def _read_image(path: str) -> np.ndarray:
    """RGB, uint8 ``(H, W, 3)``."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert('RGB'))


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more.

    Args:
        requests: One JSON object a line: ``do`` is a public method of :class:`FormatWorker`, the others its arguments.
        answers: Where the answers go.
    """
    worker = FormatWorker()

    def send(**answer: Any) -> None:
        answers.write(json.dumps(answer) + '\n')
        answers.flush()

    for line in requests:
        request = json.loads(line)
        name = request.pop('do')
        if name == 'evaluate':
            request['progress'] = lambda done, total: send(progress=[done, total])
        try:
            send(ok=getattr(worker, name)(**request))
        except MISTAKES as error:
            traceback.print_exc()
            text = explain_import(error) if isinstance(error, ImportError) else None
            text = text or str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            send(error=' '.join(text.split()) or type(error).__name__, user=True)
        except Exception as error:  # noqa: BLE001 - the other process raises it
            traceback.print_exc()
            send(error=f'{type(error).__name__}: {" ".join(str(error).split())}', user=False)


def main() -> None:
    """Serve the process that started this one."""
    answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # C libraries print too
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)


# --- in the process that compares -------------------------------------------------------------------------------------


class ModelProcess:
    """A process that runs this module, and its end of the conversation.

    Args:
        name: Name of its model, for messages.
        log: File for what it prints.
    """

    def __init__(self, name: str, log: Path) -> None:
        self._name, self._log = name, log
        bound_spinning()
        with log.open('wb') as file:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'mmitpn.benchmark.format_worker'],
                env=process_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding='utf-8',
            )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a request that was never read
                stream.close()

    def ask(self, do: str, *, on_progress: Callable[[int, int], None] | None = None, **arguments: Any) -> Any:
        """Send a request and wait for the answer.

        Args:
            do: A method of :class:`FormatWorker`.
            on_progress: Is called with finished steps and all, while it works.
            **arguments: Of the method.

        Raises:
            ValueError: After a mistake of the user.
            ChildProcessError: If the process failed.
        """
        with suppress(OSError):  # it ended; its status and its log follow
            self._process.stdin.write(json.dumps({'do': do, **arguments}) + '\n')
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if 'progress' in answer:
                if on_progress is not None:
                    on_progress(*answer['progress'])
            elif 'ok' in answer:
                return answer['ok']
            elif answer['user']:
                text = answer['error']
                raise ValueError(text if self._name in text else f'{self._name}: {text}')
            else:
                raise ChildProcessError(f'{self._name} failed: {answer["error"]}')
        status = self._process.wait()
        killed = ' (killed: out of memory?)' if status == -9 else ''
        raise ChildProcessError(f'the process of {self._name} ended with status {status}{killed}{self._last_line()}')

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
        return f'; it printed last: {lines[-1]}' if lines else ''


if __name__ == '__main__':
    main()
