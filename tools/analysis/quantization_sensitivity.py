r"""Find the parts of a network that lose accuracy in int8: what to keep in float, and what that costs.

    python tools/analysis/quantization_sensitivity.py nano-shapes --data dino_fast-itpn-nano_shapes \
        --calibration data/shapes/coco/train2017 --format onnx

MODEL is a config with its WEIGHTS, the name of a complete model, or an fp32 file of `mmitpn export`. One part at a time
is quantized; "change" says how far predictions move: 0 % is equal, see `change_of`. Then the metric of --data is
measured with all parts in int8, with the preset of the task in float, and with ever more of the most sensitive parts in
float until at most --allowed points are lost. Ratios of speed are those of one image, measured in turns with fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import mmitpn
from mmitpn.apis.export import calibration_batches, export
from mmitpn.apis.results import Result
from mmitpn.benchmark.accuracy import TestData, evaluate_predictor, find_headline
from mmitpn.deploy.metadata import KEY, ExportInfo
from mmitpn.deploy.onnx_writer import set_metadata
from mmitpn.deploy.quantize import OPERATORS, float_layers, match_names, quantize_onnx, quantize_openvino
from mmitpn.deploy.runtimes import SUFFIXES, format_of, load_session
from mmitpn.engine.cli import run_command

SUFFIX_OF = {name: suffix for suffix, name in SUFFIXES.items()}
LEAST_SCORE = 0.1  # of objects that are compared
ROOT = 'outside of modules'  # nodes that no module made


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL', help='config, complete model, or fp32 file of mmitpn export')
    parser.add_argument('weights', nargs='?', metavar='WEIGHTS', help='checkpoint of the whole model')
    parser.add_argument('--data', required=True, metavar='CONFIG', help='test dataset and metrics of this config')
    parser.add_argument('--calibration', required=True, type=Path, metavar='DIR', help='folder of images')
    parser.add_argument('--format', choices=SUFFIX_OF, default='onnx', help='default: onnx')
    parser.add_argument('--images', type=int, metavar='N', help='only the first N images of the dataset')
    parser.add_argument('--part-images', type=int, default=40, metavar='N', help='for single parts (default: 40)')
    parser.add_argument('--calibration-images', type=int, default=32, metavar='N', help='default: 32')
    parser.add_argument('--threads', type=int, metavar='N', help='of predictions (default: all cores)')
    parser.add_argument('--allowed', type=float, default=0.5, metavar='POINTS', help='allowed loss (default: 0.5)')
    parser.add_argument('--parts', nargs='*', metavar='PATH', help='single parts to measure (default: all of them)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config of --data'
    )
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')
    return parser.parse_args(argv)


# --- a quantized file -------------------------------------------------------------------------------------------------


def node_names(path: Path) -> tuple[list[str], list[str]]:
    """Names of all nodes of an exported file, and of those with weights that may be quantized."""
    if path.suffix == '.onnx':
        import onnx

        graph = onnx.load(path).graph
        weights = {one.name for one in graph.initializer}
        some = [node.name for node in graph.node if node.op_type in OPERATORS and node.input[1] in weights]
        return [node.name for node in graph.node], some
    import openvino

    nodes = openvino.Core().read_model(path).get_ordered_ops()
    kinds = ('MatMul', 'Convolution')
    some = [node.get_friendly_name() for node in nodes if node.get_type_name() in kinds]
    return [node.get_friendly_name() for node in nodes], some


def write_int8(source: Path, target: Path, batches: Sequence[Mapping[str, np.ndarray]], keep: Sequence[str]) -> None:
    """Quantize an exported file into another one, silently."""
    info = replace(load_session(source).info, precision='int8')
    with contextlib.redirect_stdout(io.StringIO()):
        if source.suffix == '.onnx':
            import onnx

            quantize_onnx(source, target, batches, keep=keep)
            model = onnx.load(target)
            set_metadata(model, info)
            onnx.save(model, target)
            return
        import openvino

        network = quantize_openvino(openvino.Core().read_model(source), batches, keep=keep)
    network.set_rt_info(info.to_json(), [KEY])
    openvino.save_model(network, target, compress_to_fp16=False)


def part_of(name: str) -> str:
    """The part of a network that a node belongs to: ``/backbone/blocks.3/attn``, ``/neck/align8``."""
    path = name.lstrip('/').split('/')[:-1]
    depth = 3 if len(path) > 1 and path[1].rpartition('.')[2].isdecimal() else 2
    return '/' + '/'.join(path[:depth]) if path else ROOT


# --- predictions ------------------------------------------------------------------------------------------------------


class RecordedPredictions:
    """The predictions of a file for the images of a dataset, made once; takes the place of a predictor."""

    def __init__(self, path: Path, data: TestData, images: int, threads: int | None) -> None:
        predictor = mmitpn.Predictor(path, threads=threads)
        self.names = predictor.names
        self._results = {
            name: next(iter(predictor.predict(name, score=0))) for name in map(data.image_path, range(images))
        }

    def predict(self, source: str, *, score: float) -> Iterator[Result]:
        """The predictions for an image of the dataset; all scores."""
        del score
        yield self._results[source]

    def change(self, reference: RecordedPredictions) -> float:
        """The mean change of the predictions in percent, see :func:`change_of`."""
        values = [change_of(one, reference._results[name]) for name, one in self._results.items()]
        return 100 * statistics.fmean([value for value in values if value is not None] or [0.0])


def change_of(result: Result, reference: Result) -> float | None:
    """How far the predictions for an image are from others, from 0 (equal) to 1.

    Objects: 1 - IoU of the boxes * (1 - difference of the scores) with the most similar object of the same class,
    averaged over the objects of both with a score over 0.1; None without objects. Label maps: the fraction of other
    pixels. Classifiers: half the sum of the probabilities' differences.
    """
    if 'boxes' in result.outputs:
        losses = [*_unmatched(result, reference), *_unmatched(reference, result)]
        return float(np.mean(losses)) if losses else None
    if 'probabilities' in result.outputs:
        return float(np.abs(result.probabilities - reference.probabilities).sum() / 2)
    return float((_label_map(result) != _label_map(reference)).mean())


def _unmatched(some: Result, others: Result) -> list[float]:
    chosen = some.scores > LEAST_SCORE
    boxes, labels, scores = some.boxes[chosen], some.labels[chosen], some.scores[chosen]
    low = np.maximum(boxes[:, None, :2], others.boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others.boxes[None, :, 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(one[:, 2:] - one[:, :2]).prod(-1) for one in (boxes, others.boxes)]
    iou = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    similar = iou * (labels[:, None] == others.labels) * (1 - np.abs(scores[:, None] - others.scores))
    return [1 - float(row.max(initial=0)) for row in similar]


def _label_map(result: Result) -> np.ndarray:
    if 'semantic' in result.outputs:
        return result.semantic
    labels = np.full(max((one['id'] for one in result.segments_info), default=0) + 1, -1)
    for one in result.segments_info:
        labels[one['id']] = one['label']
    return labels[result.panoptic]


# --- measurement ------------------------------------------------------------------------------------------------------


class Sensitivity:
    """Quantizes an fp32 file in several ways and compares the results with its own."""

    def __init__(self, source: Path, data: TestData, calibration: Path, args: argparse.Namespace, folder: Path) -> None:
        self.source, self.data, self.folder, self.threads = source, data, folder, args.threads
        self.info: ExportInfo = load_session(source).info
        files = sorted(path for path in calibration.iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
        self.batches = list(calibration_batches(files[: args.calibration_images], self.info))
        self.images = min(args.images or len(data.dataset), len(data.dataset))
        self.part_images = min(args.part_images, self.images)
        self.names, weighted = node_names(source)
        self.parts = list(dict.fromkeys(part_of(name) for name in weighted))
        self.reference = RecordedPredictions(source, data, self.images, args.threads)
        self.score = self._score(self.reference)

    def _score(self, predictions: RecordedPredictions) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return find_headline(evaluate_predictor(predictions, self.data, images=self.images))[1]

    def measure(self, keep: Sequence[str]) -> dict[str, float]:
        """Change of the predictions, metric, points lost, speed and size with some parts in float."""
        target = self._quantize(keep)
        predictions = RecordedPredictions(target, self.data, self.images, self.threads)
        score = self._score(predictions)
        return {
            'change': predictions.change(self.reference),
            'score': score,
            'loss': self.score - score,
            'speed': speed_ratio(self.source, target, self.batches[0], threads=self.threads),
            'size': file_size(target) / file_size(self.source),
        }

    def measure_part(self, part: str) -> float:
        """The change of the predictions with one part in int8."""
        target = self._quantize([name for name in self.names if part_of(name) != part])
        return RecordedPredictions(target, self.data, self.part_images, self.threads).change(self.reference)

    def _quantize(self, keep: Sequence[str]) -> Path:
        target = self.folder / f'int8{self.source.suffix}'
        write_int8(self.source, target, self.batches, keep)
        return target

    def nodes_of(self, parts: Sequence[str]) -> list[str]:
        """The names of the nodes of parts."""
        return [name for name in self.names if part_of(name) in parts]


def speed_ratio(
    first: Path, second: Path, inputs: Mapping[str, np.ndarray], *, threads: int | None = None, rounds: int = 21
) -> float:
    """Median time of one file for an image, divided by that of another; measured in turns, after a warm-up."""
    sessions = [load_session(path, threads=threads) for path in (first, second)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 3):
        for session, some in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(inputs)
            some.append(time.perf_counter() - start)
    return statistics.median(times[0][3:]) / statistics.median(times[1][3:])


def file_size(path: Path) -> int:
    """Bytes of an exported file, with the weights of OpenVINO."""
    return path.stat().st_size + (path.with_suffix('.bin').stat().st_size if path.suffix == '.xml' else 0)


def analyze(args: argparse.Namespace, steps: list) -> None:
    """All of it."""
    del steps
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    data = TestData.read(args.data, args.cfg_options)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(args.model)
        if format_of(source) is None:
            source = export(
                args.model, args.weights, format=args.format, output=Path(folder, 'fp32' + SUFFIX_OF[args.format])
            )
        study = Sensitivity(source, data, args.calibration, args, Path(folder))
        console.print(f'fp32: {study.score:.2f} on {study.images} images; {len(study.parts)} parts')
        changes: dict[str, float] = {}
        for part in study.parts if args.parts is None else match_names(study.parts, args.parts):
            changes[part] = study.measure_part(part)
            console.print(f'{part}: {changes[part]:.2f} %')
        order = sorted(changes, key=changes.get, reverse=True)
        preset = float_layers(study.info.task)
        rows = {'all parts in int8': study.measure(())}
        if preset and match_names(study.names, preset):
            rows[f'in float: {", ".join(preset)}'] = study.measure(preset)
        for number in range(1, len(order)):
            if min(one['loss'] for one in rows.values()) <= args.allowed:
                break
            rows[f'in float: {", ".join(order[:number])}'] = study.measure(study.nodes_of(order[:number]))
    print_tables(console, order, changes, rows, study)
    if args.json is not None:
        args.json.write_text(json.dumps({'fp32': study.score, 'parts': changes, 'files': rows}, indent=2) + '\n')


def print_tables(
    console: Console, order: Sequence[str], changes: Mapping[str, float], rows: Mapping[str, Any], study: Sensitivity
) -> None:
    """Parts by their change, and files by what is in float."""
    if order:
        table = Table(title='one part in int8', title_justify='left')
        table.add_column('part', overflow='fold')
        table.add_column('change of predictions', justify='right')
        for part in order:
            table.add_row(part, f'{changes[part]:.2f} %')
        console.print(table)
    table = Table(title=f'files, fp32: {study.score:.2f} points', title_justify='left')
    table.add_column('int8', overflow='fold')
    for heading in ('change', 'points', 'lost', 'speed, x fp32', 'size, x fp32'):
        table.add_column(heading, justify='right')
    for name, one in rows.items():
        figures = (f'{one["change"]:.2f} %', f'{one["score"]:.2f}', f'{one["loss"]:.2f}', f'{one["speed"]:.2f}')
        table.add_row(name, *figures, f'{one["size"]:.2f}')
    console.print(table)


if __name__ == '__main__':
    sys.exit(run_command(analyze, parse_args()))
