"""Speed, memory and accuracy of exported files and eager models, each in a process of its own.

The processes live side by side, but only one works at a time. Speed is measured in rounds: every model runs for a
moment, then the next one, so that all meet the same load of the machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mmitpn.weights import WEIGHTS

from .accuracy import TestData, find_headline
from .format_worker import ModelProcess
from .processor import Instructions, find_instructions
from .speed import describe_machine

EXPORTED = ('.onnx', '.xml')
DEFAULT_SIZE = (512, 512)
TIE = 0.05
"""Speeds that differ by less than this fraction are equal."""
PAUSE = 0.05  # seconds between two processes, for the threads of the first to fall asleep
Progress = Callable[[str, int, int], None]


# --- which models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: What it is called in the table.
        file: An exported file; None for an eager model.
        config: Config of an eager model, or the name of a complete one.
        weights: Its checkpoint; None for those of a complete model.
    """

    name: str
    file: str | None = None
    config: str | None = None
    weights: str | None = None

    @classmethod
    def parse(cls, text: str, *, data: str | None = None) -> ModelSource:
        """Read what a user writes.

        Args:
            text: An exported file, ``CONFIG=CHECKPOINT``, the name of a complete model, or a checkpoint.
            data: The config of the data, which a checkpoint alone goes with.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is none of these.
        """
        path = Path(text).expanduser()
        if path.suffix.lower() in EXPORTED:
            if not path.is_file():
                raise FileNotFoundError(f'no file {text} (seen from {Path.cwd()}); mmitpn export writes it')
            return cls(path.name, file=str(path))
        if path.suffix.lower() == '.pt2':
            raise ValueError(f'{text} is a .pt2 file, which is not benchmarked; export with --format onnx or openvino')
        if '=' in text and not path.exists():
            config, _, weights = text.partition('=')
            return cls(Path(weights).name, config=config, weights=weights)
        if text in WEIGHTS and WEIGHTS[text].config is not None:
            return cls(text, config=text)
        if path.exists() and path.suffix != '.py':
            if data is None:
                raise ValueError(
                    f'{text} is a checkpoint, whose config is not known: write CONFIG={text}, or add --data'
                )
            return cls(path.name, config=data, weights=str(path))
        complete = ', '.join(name for name, entry in WEIGHTS.items() if entry.config is not None)
        raise ValueError(
            f'no model {text!r} (seen from {Path.cwd()}); give an exported file (.onnx, .xml), CONFIG=CHECKPOINT, or'
            f' the name of a complete model ({complete})'
        )


def parse_models(texts: Sequence[str], *, data: str | None = None) -> list[ModelSource]:
    """Read all models; two of one file name are called by their paths. See :meth:`ModelSource.parse`."""
    sources = [ModelSource.parse(text, data=data) for text in texts]
    names = [source.name for source in sources]
    named = [
        ModelSource(text, source.file, source.config, source.weights) if names.count(source.name) > 1 else source
        for text, source in zip(texts, sources, strict=True)
    ]
    twice = next((one.name for one in named if named.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f'{twice} is given twice; give each model once')
    return named


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass
class ModelMeasurement:
    """What was measured of one model.

    Attributes:
        name: Its name in the table.
        is_eager: Whether it is an eager model.
        runtime: Runtime and version.
        precision: fp32, fp16 or int8.
        outputs: What it predicts.
        file_bytes: Size of its files; None where they are not local.
        imports_bytes: Peak memory of the process before the model was loaded.
        load_seconds: Time to load it.
        peak_bytes: Batch size -> peak memory of the process.
        seconds: Batch size -> seconds of every run of the network, by round.
        predictor_seconds: Of the whole of ``Predictor`` on one image in memory, by round; empty for features.
        metrics: Of the test dataset, as the framework names them; None without.
    """

    name: str
    is_eager: bool
    runtime: str
    precision: str
    outputs: tuple[str, ...]
    file_bytes: int | None
    imports_bytes: int
    load_seconds: float
    peak_bytes: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, list[list[float]]] = field(default_factory=dict)
    predictor_seconds: list[list[float]] = field(default_factory=list)
    metrics: dict[str, float] | None = None

    def by_round(self, batch: int) -> list[float]:
        """Median seconds of each round."""
        return [median(times) for times in self.seconds[batch]]

    def median_seconds(self, batch: int) -> float:
        """Median over the rounds."""
        return median(self.by_round(batch))

    def p95_seconds(self, batch: int) -> float:
        """95th percentile of all runs."""
        times = [one for times in self.seconds[batch] for one in times]
        return quantiles(times, n=20, method='inclusive')[-1] if len(times) > 1 else times[0]

    def memory_bytes(self, batch: int) -> int:
        """Peak memory beyond what the process had allocated before the model was loaded."""
        return self.peak_bytes[batch] - self.imports_bytes

    @property
    def headline(self) -> tuple[str, float] | None:
        """The metric that is shown, in points; None without."""
        return None if self.metrics is None else find_headline(self.metrics)


@dataclass
class FormatComparison:
    """What was measured of several models.

    Attributes:
        models: Of each model, in the order in which they were given.
        size: Height and width of the inputs.
        batch: Number of images for images per second.
        threads: Number of threads.
        data: The config of the data; None without.
        images: Number of images that accuracy was measured on.
        machine: See :func:`~mmitpn.benchmark.speed.describe_machine`; the load is that before the measurement.
        instructions: Of the processor.
    """

    models: list[ModelMeasurement]
    size: tuple[int, int]
    batch: int
    threads: int
    data: str | None
    images: int | None
    machine: dict[str, Any]
    instructions: Instructions

    @property
    def reference(self) -> ModelMeasurement:
        """The model that others are compared with: the first eager one, else the first."""
        return next((one for one in self.models if one.is_eager), self.models[0])

    def speedup(self, one: ModelMeasurement, other: ModelMeasurement, batch: int) -> float | None:
        """How many times as fast a model is as another: the median over the rounds; None if one has no such batch."""
        if batch not in one.seconds or batch not in other.seconds:
            return None
        rounds = zip(other.by_round(batch), one.by_round(batch), strict=True)
        return median(theirs / own for theirs, own in rounds)

    def ties(self, batch: int) -> list[tuple[str, str]]:
        """Names of the pairs whose speeds differ by less than ``TIE``."""
        pairs = []
        for one, other in combinations(self.models, 2):
            ratio = self.speedup(one, other, batch)
            if ratio is not None and max(ratio, 1 / ratio) < 1 + TIE:
                pairs.append((one.name, other.name))
        return pairs

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            'machine': {**self.machine, **asdict(self.instructions)},
            'threads': self.threads,
            'size': list(self.size),
            'batch': self.batch,
            'data': self.data,
            'images': self.images,
            'speedup_over': self.reference.name,
            'ties': {str(batch): self.ties(batch) for batch in sorted({1, self.batch})},
            'latency': 'of the network on a prepared batch: without decoding, preprocessing, post-processing, drawing',
            'predictor': 'the whole of Predictor on one image in memory',
            'memory': 'peak resident memory of the process, without what it allocated before it loaded the model',
            'models': [self._facts(one) for one in self.models],
        }

    def _facts(self, one: ModelMeasurement) -> dict[str, Any]:
        by_batch = {
            str(batch): {
                'median_ms': 1e3 * one.median_seconds(batch),
                'p95_ms': 1e3 * one.p95_seconds(batch),
                'images_per_second': batch / one.median_seconds(batch),
                'speedup': self.speedup(one, self.reference, batch),
                'memory_bytes': one.memory_bytes(batch),
            }
            for batch in one.seconds
        }
        predictor = 1e3 * median(map(median, one.predictor_seconds)) if one.predictor_seconds else None
        return {**asdict(one), 'by_batch': by_batch, 'predictor_median_ms': predictor}


def compare_formats(
    sources: Sequence[ModelSource],
    *,
    data: str | None = None,
    options: Sequence[str] = (),
    images: int | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    threads: int | None = None,
    rounds: int = 11,
    seconds: float = 0.5,
    features: bool = False,
    progress: Progress | None = None,
) -> FormatComparison:
    """Measure several models.

    Args:
        sources: The models.
        data: Config whose test dataset and metrics give the accuracy; None: only time the models.
        options: Overrides of this config, ``KEY=VALUE``.
        images: Only the first images of the dataset; None: all.
        size: Height and width of the inputs; None: that of a file of fixed size, that of the first test image, or
            ``DEFAULT_SIZE``.
        batch: Number of images for images per second.
        threads: Number of threads; None: the processor's.
        rounds: Number of rounds.
        seconds: How long a model runs in a round, for each batch size.
        features: Run backbone and neck of eager models only, beside files of features.
        progress: Is called with what is done, the number of finished steps and of all.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If a runtime is not installed.
        ValueError: If a model cannot be loaded or run, or models do not belong together or to the data.
        ChildProcessError: If a process ended unexpectedly.
    """
    machine = describe_machine()
    threads = threads or machine['cores']
    report = progress or (lambda *_: None)
    test_data = None if data is None else TestData.read(data, options)
    image = None if test_data is None else test_data.image_path(0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        processes, models, fixed = [], [], []
        for index, source in enumerate(sources):
            report('load', index, len(sources))
            process = stack.enter_context(closing(ModelProcess(source.name, Path(folder, f'{index}.log'))))
            facts = _load(process, source, threads, features)
            classes, shape = facts.pop('classes'), (facts.pop('size'), facts.pop('least'), facts.pop('batch'))
            facts['outputs'] = tuple(facts['outputs'])
            models.append(ModelMeasurement(source.name, source.file is None, **facts))
            _check_together(models, classes, test_data)
            processes.append(process)
            fixed.append(shape)
        size = _choose_size(sources, [one[:2] for one in fixed], size, test_data)
        batches = _choose_batches(sources, [one for *_, one in fixed], batch)
        for index, (process, one) in enumerate(zip(processes, models, strict=True)):
            peaks = process.ask('prepare', size=size, batches=batches[index], image=image)['peak_bytes']
            one.peak_bytes = {int(key): value for key, value in peaks.items()}
            one.seconds = {key: [] for key in sorted(batches[index])}
        report('load', len(sources), len(sources))
        _measure_speed(processes, models, rounds, seconds, report)
        if test_data is not None:
            images = min(images or len(test_data.dataset), len(test_data.dataset))
            _measure_accuracy(processes, models, {'config': data, 'options': list(options), 'images': images}, report)
    return FormatComparison(
        models, size, batch, threads, data, images if data is not None else None, machine, find_instructions()
    )


def _load(process: ModelProcess, source: ModelSource, threads: int, features: bool) -> dict[str, Any]:
    if source.file is None:
        eager = {'config': source.config, 'weights': source.weights, 'features': features}
        return process.ask('load_eager', threads=threads, **eager)
    return process.ask('load_file', threads=threads, path=source.file)


def _check_together(models: Sequence[ModelMeasurement], classes: Sequence[str], data: TestData | None) -> None:
    """Raise where the last model does not belong to the others, or to the data."""
    first, last = models[0], models[-1]
    if (first.outputs == ('features',)) != (last.outputs == ('features',)):
        raise ValueError(
            f'{first.name} gives {", ".join(first.outputs)} and {last.name} {", ".join(last.outputs)}; compare files of'
            ' features with each other, and with eager models by --features'
        )
    if data is None:
        return
    if last.outputs == ('features',):
        raise ValueError(f'{last.name} gives features, which have no accuracy; leave --data out')
    if first.outputs != last.outputs:
        raise ValueError(
            f'{first.name} predicts {", ".join(first.outputs)}, but {last.name} {", ".join(last.outputs)}; compare'
            ' models of one task, or leave --data out to time them only'
        )
    data.check_classes(classes, last.name)


def _choose_size(
    sources: Sequence[ModelSource],
    limits: Sequence[tuple[Sequence[int] | None, int]],
    size: tuple[int, int] | None,
    data: TestData | None,
) -> tuple[int, int]:
    """The size of the inputs; ``limits`` are the one size and the smallest side that each model takes."""
    known = [(one.name, (sides[0], sides[1])) for one, (sides, _) in zip(sources, limits, strict=True) if sides]
    if size is not None:
        known.insert(0, ('--size', size))
    for name, one in known[1:]:
        if one != known[0][1]:
            first, other = (f'{height}x{width}' for height, width in (known[0][1], one))
            raise ValueError(f'{known[0][0]} is {first}, but {name} takes {other} only; compare models at one size')
    least = max(side for _, side in limits)
    if known:
        height, width = known[0][1]
        if min(height, width) < least:
            raise ValueError(f'{known[0][0]} is {height}x{width}, but a file takes sides from {least} pixels only')
        return height, width
    height, width = DEFAULT_SIZE if data is None else data.input_size()
    return max(height, least), max(width, least)  # as Predictor pads small images


def _choose_batches(sources: Sequence[ModelSource], fixed: Sequence[int | None], batch: int) -> list[list[int]]:
    wanted = sorted({1, batch})
    for source, one in zip(sources, fixed, strict=True):
        if one is not None and one not in wanted:
            raise ValueError(f'{source.name} takes batches of {one} images only; write --batch {one}')
    return [wanted if one is None else [one] for one in fixed]


def _measure_speed(
    processes: Sequence[ModelProcess], models: Sequence[ModelMeasurement], rounds: int, seconds: float, report: Progress
) -> None:
    kinds = [*sorted({batch for one in models for batch in one.seconds}), None]  # None: the whole of Predictor
    turns = [
        (process, one, batch)
        for batch in kinds  # what is compared is measured side by side
        for process, one in zip(processes, models, strict=True)
        if (one.outputs != ('features',) if batch is None else batch in one.seconds)
    ]
    for done in range(rounds * len(turns)):
        report('speed', done, rounds * len(turns))
        process, one, batch = turns[done % len(turns)]
        if batch is not None:
            one.seconds[batch].append(process.ask('time_network', batch=batch, seconds=seconds))
        else:
            one.predictor_seconds.append(process.ask('time_predictor', seconds=seconds / 2))
        time.sleep(PAUSE)
    report('speed', rounds * len(turns), rounds * len(turns))


def _measure_accuracy(
    processes: Sequence[ModelProcess], models: Sequence[ModelMeasurement], request: Mapping[str, Any], report: Progress
) -> None:
    total = request['images'] * len(processes)
    for index, (process, one) in enumerate(zip(processes, models, strict=True)):
        before = request['images'] * index
        report('accuracy', before, total)
        one.metrics = process.ask(
            'evaluate', on_progress=lambda done, _, before=before: report('accuracy', before + done, total), **request
        )
