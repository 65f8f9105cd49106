"""Find objects in images, folders and videos, and draw them.

    mmitpn predict street.jpg --model nano-shapes --out predictions
    mmitpn predict 'photos/**/*.jpg' --model CONFIG --weights FILE --json --batch 8

SOURCE is an image or video file, a folder (without its subfolders), a glob in quotes, a URL, or the number of a camera.
DIR gets the drawn images under their names, and a video for each video; what is already in it stays, unless it has the
same name. Exit status: 0; 1 if some images could not be read, which are named; 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mmitpn.apis.data_sources import DataSource
    from mmitpn.apis.predictor import Predictor
    from mmitpn.apis.results import Result

JSON_NAME = 'predictions.json'
FALLBACK_FPS = 25.0  # of a camera or video that does not tell


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='image, video, folder, glob, URL or camera number')
    parser.add_argument(
        '--model',
        required=True,
        metavar='CONFIG_OR_NAME',
        help='config, its name, FRAMEWORK::NAME, nano-shapes, or an exported file',
    )
    parser.add_argument('--weights', metavar='FILE_OR_NAME', help='checkpoint of the model; nano-shapes has its own')
    parser.add_argument(
        '--out', type=Path, default=Path('predictions'), metavar='DIR', help='results folder (default: predictions)'
    )
    parser.add_argument('--score', type=float, default=0.3, help='lowest score of an object, 0 to 1 (default: 0.3)')
    parser.add_argument(
        '--tile', type=int, metavar='PIXELS', help='cut larger images into tiles of this side, for small objects'
    )
    parser.add_argument('--batch', type=int, default=1, help='images that the model takes at once (default: 1)')
    parser.add_argument('--json', action='store_true', help=f'write DIR/{JSON_NAME}: all predictions in COCO format')
    parser.add_argument(
        '--save-video', action='store_true', help='write a camera or stream as one video, not as one image per frame'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda:0 ... (default: auto)')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--compile', action='store_true', help='compile the model: minutes at the first images')
    parser.add_argument('--trust', action='store_true', help='load a .pt2 file, in which torch may execute code')
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')
    return parser.parse_args(argv)


# --- what is written -------------------------------------------------------------------------------------------------


class DrawingWriter:
    """Writes drawn images and videos; two of one name get different ones. Close it, so that videos are complete.

    Args:
        folder: The folder.
        save_streams: Whether cameras and streams become videos too.
    """

    def __init__(self, folder: Path, *, save_streams: bool) -> None:
        self._folder, self._save_streams = folder, save_streams
        self._names: dict[str, int] = {}
        self._video: Any = None  # source of the open sink, and its size
        self._sink: Any = None
        self._stack = ExitStack()
        self.count = 0

    def write(self, result: Result) -> None:
        """Draw a result into its file, or append it to its video."""
        if result.video is None:
            name = result.name if Path(result.name).suffix else f'{result.name}.jpg'
            result.save(self._unused(name))
        elif result.video.frames is None and not self._save_streams:
            result.save(self._unused(f'{Path(result.name).stem}_{result.frame:06d}.jpg'))
        else:
            self._write_frame(result)
            return
        self.count += 1

    def _write_frame(self, result: Result) -> None:
        from mmitpn.apis.results import import_supervision

        height, width = result.image.shape[:2]
        if result.frame == 0 or self._video != (result.video, width, height):
            self.close()
            sv = import_supervision()
            path = self._unused(f'{Path(result.name).stem}.mp4')
            info = sv.VideoInfo(width, height, result.video.fps or FALLBACK_FPS, result.video.frames)
            self._sink = self._stack.enter_context(sv.VideoSink(str(path), info))
            self._video = (result.video, width, height)
            self.count += 1
        self._sink.write_frame(result.draw()[..., ::-1].copy())

    def _unused(self, name: str) -> Path:
        """A path that no other result of this run has."""
        number = self._names[name] = self._names.get(name, 0) + 1
        path = Path(name)
        return self._folder / (name if number == 1 else f'{path.stem}_{number}{path.suffix}')

    def close(self) -> None:
        """Complete the open video."""
        self._stack.close()
        self._sink = self._video = None


class CocoWriter:
    """Writes images, annotations with their scores, and categories as one COCO file, without keeping them in memory.

    The file gets its name when it is closed.

    Args:
        path: The file.
        classes: Names of the classes; category ids start from 1.
    """

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._path = path
        self._temporary = path.with_suffix('.json.part')
        self._annotations = self._temporary.open('w', encoding='utf-8')
        self._images = tempfile.TemporaryFile('w+', encoding='utf-8')  # noqa: SIM115 - closed with the other one
        categories = [{'id': index, 'name': name} for index, name in enumerate(classes, 1)]
        self._annotations.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        self._number = {'image': 0, 'annotation': 0}

    def write(self, result: Result) -> None:
        """Append an image and its predictions."""
        height, width = result.image.shape[:2]
        self._number['image'] += 1
        image = {'id': self._number['image'], 'file_name': str(result.path or result.name)}
        image |= {'width': width, 'height': height} | ({} if result.frame is None else {'frame': result.frame})
        self._append(self._images, image, self._number['image'])
        for one in result.to_coco(image['id']):
            self._number['annotation'] += 1
            extra = {'id': self._number['annotation'], 'iscrowd': 0}
            if 'segmentation' in one:
                extra['area'] = int(coco_mask.area(one['segmentation']))
            elif 'bbox' in one:
                extra['area'] = one['bbox'][2] * one['bbox'][3]
            self._append(self._annotations, {**extra, **one}, self._number['annotation'])

    def _append(self, file: Any, value: dict[str, Any], number: int) -> None:
        file.write((',\n' if number > 1 else '\n') + json.dumps(value))

    def close(self) -> None:
        """Complete the file."""
        self._annotations.write('],\n"images": [')
        self._images.seek(0)
        shutil.copyfileobj(self._images, self._annotations)
        self._annotations.write(']}\n')
        self._annotations.close()
        self._images.close()
        self._temporary.replace(self._path)


# --- what is printed -------------------------------------------------------------------------------------------------


@dataclass
class ClassCount:
    """What was found of a class: objects, images with it, the sum of the scores or fractions of the area."""

    objects: int = 0
    images: int = 0
    total: float = 0.0


class PredictionCounts:
    """Counts what was found, by class."""

    def __init__(self) -> None:
        self.images = 0
        self._counts: dict[str, ClassCount] = defaultdict(ClassCount)
        self._outputs: tuple[str, ...] = ()

    def add(self, result: Result) -> None:
        """Count the predictions of an image."""
        self.images += 1
        self._outputs = result.outputs
        names = result.names[:1] if 'probabilities' in result.outputs else result.names
        if 'boxes' in result.outputs or 'probabilities' in result.outputs:
            values = result.scores
        else:
            regions = result.panoptic if 'panoptic' in result.outputs else result.semantic
            keys = [one['id'] for one in result.segments_info] if 'panoptic' in result.outputs else result.labels
            values = [(regions == key).mean() for key in keys]
        for name, value in zip(names, values, strict=False):
            self._counts[name].objects += 1
            self._counts[name].total += float(value)
        for name in set(names):
            self._counts[name].images += 1

    def table(self) -> Table:
        """One row for each class that was found, the most frequent first."""
        has_scores = 'boxes' in self._outputs or 'probabilities' in self._outputs
        what = 'objects' if 'boxes' in self._outputs else 'segments' if 'panoptic' in self._outputs else None
        table = Table('class', title=f'{self.images} image{"" if self.images == 1 else "s"}', title_justify='left')
        for heading in (what, 'images', 'mean score' if has_scores else 'mean area'):
            if heading is not None:
                table.add_column(heading, justify='right')
        for name, one in sorted(self._counts.items(), key=lambda pair: -pair[1].objects):
            mean = one.total / one.objects
            cells = [str(one.objects)] * (what is not None) + [str(one.images)]
            table.add_row(name, *cells, f'{mean:.2f}' if has_scores else f'{mean:.1%}')
        if not self._counts:
            table.add_row('nothing found', *['0'] * (len(table.columns) - 1))
        return table


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """The rate, once it is known."""
        speed = task.finished_speed or task.speed
        return Text('' if speed is None else f'{speed:.1f} images/s')


@contextmanager
def show_progress(total: int | None, console: Console) -> Iterator[Any]:
    """A bar with rate and remaining time; gives a function that advances it by one."""
    columns = (TextColumn('predict'), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('predict', total=total)
        yield lambda: progress.advance(task)


# --- the command -----------------------------------------------------------------------------------------------------


def predict(args: argparse.Namespace, model: Predictor, data: DataSource, console: Console) -> list[str]:
    """Predict everything in a source and write the results; Ctrl-C ends a camera or a long video early.

    Returns:
        What could not be read, with the reason.
    """
    found, broken = PredictionCounts(), []
    results = model.predict(
        data,
        score=args.score,
        batch=args.batch,
        tile=args.tile,
        on_broken=lambda _, error: broken.append(str(error)),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    drawings = DrawingWriter(args.out, save_streams=args.save_video)
    with ExitStack() as stack:
        stack.callback(drawings.close)
        coco = None
        if args.json:
            coco = CocoWriter(args.out / JSON_NAME, model.names)
            stack.callback(coco.close)
        advance = stack.enter_context(show_progress(data.total, console))
        try:
            for result in results:
                found.add(result)
                drawings.write(result)
                if coco is not None:
                    coco.write(result)
                advance()
        except KeyboardInterrupt:
            console.print('stopped by Ctrl-C: the results until here are complete')
    console.print(found.table())
    written = f'{drawings.count} drawing{"" if drawings.count == 1 else "s"} in {args.out}'
    console.print(written + (f', predictions in {args.out / JSON_NAME}' if args.json else ''), soft_wrap=True)
    return broken


def main(argv: list[str] | None = None) -> int:
    """Predict; returns 0, 1 if some images could not be read, 2 for a mistake in the command."""
    args = parse_args(argv)
    broken: list[str] = []

    def run(args: argparse.Namespace, steps: list) -> None:
        from mmitpn.apis.data_sources import DataSource
        from mmitpn.apis.predictor import Predictor
        from mmitpn.apis.results import import_supervision

        del steps
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f'--out {args.out} is a file; give a folder')
        import_supervision()
        data = DataSource(args.source)  # what is wrong with it is reported before the model is loaded
        model = Predictor(
            args.model,
            args.weights,
            device=args.device,
            dtype=args.dtype,
            compile='default' if args.compile else None,
            trust=args.trust,
        )
        broken.extend(predict(args, model, data, Console()))

    from mmitpn.deploy.runtimes import format_of

    if format_of(args.model) is not None:
        from mmitpn.user_errors import run_without_framework as run_command
    else:
        from mmitpn.engine.cli import run_command
    status = run_command(run, args)
    for text in broken:
        sys.stderr.write(f'left out: {text}\n')
    return status or int(bool(broken))


if __name__ == '__main__':
    sys.exit(main())
