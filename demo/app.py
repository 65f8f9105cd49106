"""A page to try models in a browser: an image in, predictions out, with and without token reduction.

python demo/app.py nano-shapes --port 7860
python demo/app.py nano-shapes CONFIG=CHECKPOINT model.onnx
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from textwrap import shorten
from threading import Lock

import gradio as gr
import numpy as np
from PIL import Image

import mmitpn
from mmitpn.user_errors import USER_ERRORS, describe_error

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')
RUNS, SECONDS = 5, 10.0  # timed runs of each setting at most, and the time after which none begins
ABOUT = 'Token gathering and migration: large images gain most, small ones may take longer.'


def read_image(path: str | None, *, max_pixels: int) -> Image.Image:
    """Decode an uploaded file; its number of pixels is checked in the header first.

    Raises:
        ValueError: If there is none, it is no image, is damaged, or has more than ``max_pixels`` pixels.
    """
    if path is None:
        raise ValueError('there is no image: upload one, or choose an example, and press Run again')
    if not Path(path).is_file():
        raise ValueError('the image was deleted from the server, as all are after a day; upload it again')
    size, kinds = Path(path).stat().st_size, f'allowed: {", ".join(FORMATS)}'
    limit = f'allowed: up to {max_pixels:,} (--max-pixels); make it smaller'
    try:
        image = Image.open(path, formats=FORMATS)  # reads the header only
    except Image.DecompressionBombError as error:
        raise ValueError(f'the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels; {limit}') from error
    except Exception as error:  # any error of a decoder is about the upload
        raise ValueError(f'the file ({size:,} bytes) is not an image; {kinds}; choose another one') from error
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f'the image has {width} x {height} = {width * height:,} pixels; {limit}')
    try:
        image.load()
    except Exception as error:
        raise ValueError(f'the {image.format} file ({size:,} bytes) is damaged; {kinds}; save it again') from error
    return image


@contextmanager
def errors_in_page() -> Iterator[None]:
    """Show an error as a sentence in the page. The log has its traceback, unless it is a mistake of the user."""
    try:
        yield
    except Exception as error:
        raise gr.Error(describe_error(error), print_exception=not isinstance(error, USER_ERRORS)) from error


class DemoModels:
    """The models of the page, of which one is in memory. Requests take turns, so that no two mix their settings.

    Args:
        names: What ``mmitpn.Predictor`` takes, or ``CONFIG=CHECKPOINT``.
        device: As of ``mmitpn.Predictor``.
        max_pixels: Of an image, at most.
    """

    def __init__(self, names: Sequence[str], *, device: str = 'auto', max_pixels: int = 25_000_000) -> None:
        self.names, self.device, self.max_pixels = list(dict.fromkeys(names)), device, max_pixels
        self._lock = Lock()
        self._name: str | None = None

    def select(self, name: str) -> gr.Checkbox:
        """Load a model. Returns the switch of token reduction, disabled with the reason where the model has none.

        Raises:
            gr.Error: If it cannot be loaded.
        """
        with errors_in_page(), self._lock:
            self._load(name)
            info, possible = self._reason or ABOUT, not self._reason
            return gr.Checkbox(self._trained_with, label='Token reduction', info=info, interactive=possible)

    def predict(self, path: str | None, name: str, score: float, reduce: bool) -> tuple[np.ndarray, str]:
        """Predict an image with and without token reduction, in turns.

        Args:
            path: The image file.
            name: Of the model.
            score: Objects with a lower score are left out, 0 to 1.
            reduce: Whether the predictions with token reduction are drawn.

        Returns:
            The drawing, RGB, uint8 ``(H, W, 3)``; and a Markdown table of times in milliseconds and what was found.

        Raises:
            gr.Error: If there is no prediction; the message says why, and what to do.
        """
        with errors_in_page(), self._lock:
            image = read_image(path, max_pixels=self.max_pixels)
            self._load(name)
            if reduce and self._reason:
                raise ValueError(f'{self._reason}; switch token reduction off')
            settings = [False] if self._reason else [False, True]
            found = {one: self._predict(image, score, one) for one in settings}
            times: dict[bool, list[float]] = {one: [] for one in settings}
            begin = time.perf_counter()
            while not times[False] or (len(times[False]) < RUNS and time.perf_counter() - begin < SECONDS):
                for one in settings:
                    start = time.perf_counter()
                    self._predict(image, score, one)
                    times[one].append(1e3 * (time.perf_counter() - start))
            return found[reduce].draw(), self._table(found, times, reduce)

    def _load(self, name: str) -> None:
        """Load a model, unless it is in memory, and find whether its tokens can be reduced."""
        if name == self._name:
            return
        if name not in self.names:
            raise ValueError(f'no model {name!r}; allowed: {", ".join(self.names)}')
        self._name = self._model = self._backbone = None  # frees the memory of the other one
        config, _, weights = name.partition('=')
        self._model = mmitpn.Predictor(config, weights or None, device=self.device)
        self._reason, self._trained_with = '', False
        backbone = getattr(self._model.model, 'backbone', None)
        if self._model.cfg is None:
            self._reason = f'{name} is an exported file, whose token reduction was chosen at its export'
        elif not hasattr(backbone, 'set_token_reduction'):
            self._reason = f'the backbone of {name} is {type(backbone).__name__}; only FastITPN reduces tokens'
        else:
            self._trained_with = backbone.token_reduction is not None
            if not self._trained_with:
                backbone.set_token_reduction(token_gathering={}, token_migration={})
            self._backbone, self._reduction = backbone, backbone.token_reduction
        self._name = name

    def _predict(self, image: Image.Image, score: float, reduce: bool) -> mmitpn.Result:
        if self._backbone is not None:  # set_token_reduction() would reset what learned=True has learned
            self._backbone.token_reduction = self._reduction if reduce else None
        return next(self._model.predict(image, score=score))

    def _table(self, found: dict[bool, mmitpn.Result], times: dict[bool, list[float]], drawn: bool) -> str:
        lines = ['| tokens | ms | found |', '|:--|:--|:--|']
        for one, values in times.items():
            tokens = '-' if len(times) == 1 else ('all', 'reduced')[one] + ' (drawn)' * (one == drawn)
            summary = shorten(found[one].summary, 200, placeholder=' ...').replace('|', r'\|')
            lines.append(f'| {tokens} | {median(values):.1f} ({min(values):.1f} - {max(values):.1f}) | {summary} |')
        runs = f'{len(times[drawn])} run{"s" * (len(times[drawn]) > 1)}'
        text = f'ms: milliseconds of this image on this machine ({self._model.device}), from the decoded image to its'
        text += f' predictions; median (range) of {runs} after an untimed one.'
        return '\n'.join([*lines, '', text])


def build_page(models: DemoModels) -> gr.Blocks:
    """The page; the first model is loaded.

    Raises:
        gr.Error: If it cannot be loaded.
    """
    examples = [str(path) for path in sorted(Path(__file__).parent.glob('shapes_*.jpg'))]
    with gr.Blocks(analytics_enabled=False, title='mmitpn', delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown('# mmitpn\nAn image in; boxes, masks, segmentation or classes out.')
        with gr.Row():
            with gr.Column():
                image = gr.Image(label='Image', type='filepath', height=320)
                image.preprocess = lambda data: data and data.path  # gr.Image's raises unclear errors for broken files
                name = gr.Dropdown(models.names, value=models.names[0], label='Model')
                score = gr.Slider(0, 1, 0.3, step=0.05, label='Score threshold', info='Lower scores are left out.')
                reduce = models.select(models.names[0])
                button = gr.Button('Run', variant='primary')
            with gr.Column():
                drawing = gr.Image(label='Predictions', format='png', height=320, buttons=['download', 'fullscreen'])
                table = gr.Markdown()
        gr.Examples(examples, image)
        queue = {'concurrency_limit': 1, 'concurrency_id': 'model'}
        name.change(models.select, name, reduce, **queue)
        button.click(models.predict, [image, name, score, reduce], [drawing, table], **queue)
    return page


def main() -> None:
    """Serve the page until Ctrl+C."""
    parser = argparse.ArgumentParser(description='Try models in a browser.')
    parser.add_argument('models', nargs='+', metavar='MODEL', help='nano-shapes, CONFIG=CHECKPOINT or an exported file')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 opens the page to the network')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--share', action='store_true', help="a public address, through Gradio's servers")
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda:0 ... (default: auto)')
    parser.add_argument('--max-bytes', type=int, default=20_000_000, help='of an upload')
    parser.add_argument('--max-pixels', type=int, default=25_000_000, help='of an image')
    args = parser.parse_args()
    theme = gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace'])  # no fonts from elsewhere
    try:
        page = build_page(DemoModels(args.models, device=args.device, max_pixels=args.max_pixels))
        page.launch(
            server_name=args.host, server_port=args.port, share=args.share, max_file_size=args.max_bytes, theme=theme,
            css='th { white-space: nowrap }', footer_links=[],
        )  # fmt: skip
    except (gr.Error, OSError) as error:  # OSError: the port is taken
        parser.error(getattr(error, 'message', str(error)))


if __name__ == '__main__':
    main()
