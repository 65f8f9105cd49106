"""Sources of predictions: files, folders, globs, addresses, videos, cameras, arrays and lists of these, read lazily."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

import cv2
import numpy as np
from PIL import Image, ImageOps

from mmitpn.utils import IMAGES

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.ts', '.gif')
STREAMS = ('rtsp', 'rtmp', 'udp', 'tcp')
TIMEOUT = 30  # seconds without an answer of a server
ENOUGH = 0.9  # fraction of the frames that a video's header announces, below which it counts as cut off
ALLOWED = (
    'an image or video file, a folder, a glob, a URL, a camera number, a PIL image, an RGB array, or a list of these'
)


@dataclass(frozen=True)
class VideoFacts:
    """A video or camera.

    Attributes:
        source: Path, address or camera number.
        width: In pixels.
        height: In pixels.
        fps: Frames per second; 0 where it is unknown.
        frames: Number of frames as the header says; None where it is unknown, as of a camera.
    """

    source: str | int
    width: int
    height: int
    fps: float
    frames: int | None


@dataclass(frozen=True)
class SourceItem:
    """One image of a source.

    Attributes:
        name: Name of the file, also of an address (``street.jpg``, ``clip.mp4``); ``camera0`` for camera 0; ``image``
            for an array, or ``image0``, ``image1``, ... for several.
        path: The image file, which the reader of the item decodes; None where ``image`` or ``error`` is set.
        image: RGB, uint8 ``(H, W, 3)``.
        frame: Index of the frame in its video, from 0; None for images.
        video: The video; None for images.
        error: Why this image cannot be read, where the source has further ones; None if it can.
    """

    name: str
    path: Path | None = None
    image: np.ndarray | None = None
    frame: int | None = None
    video: VideoFacts | None = None
    error: Exception | None = None


class DataSource:
    """Everything that a user may ask predictions for, as an iterator of :class:`SourceItem`.

    What is wrong with the source as a whole is raised when it is created; a broken image or video among several becomes
    an item with ``error``. One frame or image is read at a time.

    Args:
        source: The path of an image or video file; of a folder, whose images and videos are taken in the order of their
            names, without its subfolders; a glob (``'DIR/**/*.jpg'`` takes subfolders too); an ``http(s)://`` address
            of an image or video; the address of a stream (``rtsp://``, ``rtmp://``, ``udp://``, ``tcp://``); the number
            of a camera; a PIL image, turned as its EXIF tag says; an RGB array, uint8 ``(H, W, 3)``, or gray
            ``(H, W)``, or RGBA ``(H, W, 4)``, whose opacity is ignored; a list or tuple of any of these.

    Attributes:
        is_single: Whether the source is one image.

    Raises:
        FileNotFoundError: If there is no such file, or none in a folder or for a glob.
        TypeError: If the source is of another type.
        ValueError: If a file has an ending that is neither an image's nor a video's, an array has another shape, or a
            video does not decode.
    """

    def __init__(self, source: Any) -> None:
        several = isinstance(source, (list, tuple))
        if several and not source:
            raise ValueError(f'the list of sources is empty; give {ALLOWED}')
        self._parts = [part for one in (source if several else [source]) for part in _expand(one)]
        self.is_single = (
            not several and len(self._parts) == 1 and not _is_video(self._parts[0]) and not _is_many(source)
        )
        if len(self._parts) == 1 and _is_video(self._parts[0]):
            _open_video(self._parts[0])[0].release()  # raises where it does not decode

    @property
    def total(self) -> int | None:
        """Number of images and frames; None where a camera, stream or video does not tell."""
        counts = [_count(part) for part in self._parts]
        return None if None in counts else sum(counts)

    def __iter__(self) -> Iterator[SourceItem]:
        """The items in the order of the source."""
        for index, part in enumerate(self._parts):
            name = _name(part, index if len(self._parts) > 1 else None)
            try:
                yield from _read_part(part, name)
            except (OSError, ValueError) as error:
                if len(self._parts) == 1:
                    raise
                yield SourceItem(name, error=error)


# --- from what the user gives to single images and videos ------------------------------------------------------------


def _expand(source: Any) -> list[Any]:
    """The images and videos of one source: arrays, PIL images, paths, addresses (str), camera numbers."""
    if isinstance(source, (bool, np.bool_)):
        raise TypeError(f'the source is {source}; give {ALLOWED}')
    if isinstance(source, (Image.Image, np.ndarray)):
        if isinstance(source, np.ndarray):
            _check_array(source)
        return [source]
    if isinstance(source, (int, np.integer)):
        if source < 0:
            raise ValueError(f'the source is camera {source}; cameras are numbered from 0')
        return [int(source)]
    if not isinstance(source, (str, os.PathLike)):
        hint = '; turn a tensor into an RGB array: (H, W, 3), uint8' if hasattr(source, 'detach') else ''
        raise TypeError(f'the source is a {type(source).__name__}; give {ALLOWED}{hint}')
    text = os.fspath(source)
    if '://' in text:
        scheme = urlparse(text).scheme.lower()
        if scheme not in ('http', 'https', *STREAMS):
            raise ValueError(f'{text}: sources are read from http, https and {", ".join(STREAMS)} addresses')
        return [text]
    if isinstance(source, str) and text.isdecimal() and not Path(text).exists():
        return [int(text)]  # a camera, from a command line
    return _expand_path(Path(text).expanduser())


def _expand_path(path: Path) -> list[Path]:
    known = (*IMAGES, *VIDEOS)
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix.lower() in known and one.is_file())
        if not found:
            folders = any(one.is_dir() for one in path.iterdir())
            advice = f"; subfolders are not searched: write '{path}/**/*.jpg'" if folders else ''
            raise FileNotFoundError(f'the folder {path} has no image or video ({" ".join(known)}){advice}')
        return found
    if path.is_file():
        if path.suffix.lower() not in known:
            raise ValueError(f'{path}: the ending {path.suffix!r} is none of {" ".join(known)}')
        return [path]
    if glob.has_magic(str(path)):
        found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))  # noqa: PTH207 - of an absolute path too
        found = [one for one in found if one.suffix.lower() in known and one.is_file()]
        if not found:
            raise FileNotFoundError(f'the glob {str(path)!r} matches no image or video (seen from {Path.cwd()})')
        return found
    raise FileNotFoundError(f'no file or folder {str(path)!r} (seen from {Path.cwd()}); give {ALLOWED}')


def _is_many(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and '://' not in os.fspath(source) and not Path(source).is_file()


def _suffix(part: Path | str) -> str:
    return Path(unquote(urlparse(part).path) if isinstance(part, str) else part).suffix.lower()


def _is_video(part: Any) -> bool:
    if isinstance(part, str) and urlparse(part).scheme.lower() in STREAMS:
        return True
    return isinstance(part, int) or (isinstance(part, (str, Path)) and _suffix(part) in VIDEOS)


def _count(part: Any) -> int | None:
    if not _is_video(part):
        return 1
    if isinstance(part, int) or (isinstance(part, str) and urlparse(part).scheme.lower() in STREAMS):
        return None
    try:
        video, facts = _open_video(part)
    except (OSError, ValueError):
        return 0
    video.release()
    return facts.frames


def _name(part: Any, index: int | None) -> str:
    if isinstance(part, Path):
        return part.name
    if isinstance(part, int):
        return f'camera{part}'
    if isinstance(part, str):
        return Path(unquote(urlparse(part).path)).name or urlparse(part).netloc.replace(':', '_')
    file = getattr(part, 'filename', None)  # of a PIL image that was opened from a file
    return Path(file).name if isinstance(file, str) and file else 'image' if index is None else f'image{index}'


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_part(part: Any, name: str) -> Iterator[SourceItem]:
    if _is_video(part):
        yield from _read_video(part, name)
    elif isinstance(part, Path):
        yield SourceItem(name, path=part)
    elif isinstance(part, str):
        yield SourceItem(name, image=_download(part))
    elif isinstance(part, Image.Image):
        yield SourceItem(name, image=np.asarray(ImageOps.exif_transpose(part).convert('RGB')))
    else:
        yield SourceItem(name, image=_as_rgb(part))


def _check_array(array: np.ndarray) -> None:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not is_image or 0 in array.shape:
        raise ValueError(
            f'the array has the shape {array.shape}; give an RGB image (H, W, 3), gray (H, W) or RGBA (H, W, 4), and'
            ' several as a list'
        )
    if array.dtype != np.uint8:
        raise TypeError(f'the array holds {array.dtype}; give RGB values from 0 to 255 as uint8')


def _as_rgb(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _download(url: str) -> np.ndarray:
    """The image at an address, decoded as mmcv decodes files (and turned as EXIF says)."""
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (URLError, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(f'{url} cannot be downloaded ({error}); check the address and the network') from error
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise ValueError(
            f'{url} is not an image ({len(content):,} bytes); addresses of videos end in one of {" ".join(VIDEOS)}'
        )
    return np.ascontiguousarray(image[..., ::-1])


def _open_video(source: Path | str | int) -> tuple[cv2.VideoCapture, VideoFacts]:
    video = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not video.isOpened() or not width * height:
        video.release()
        if isinstance(source, int):
            raise ValueError(f'camera {source} cannot be opened; is it connected, and not used by another program?')
        if isinstance(source, str):
            raise ValueError(f'{source} cannot be opened as a video; check the address, the network and the codec')
        raise ValueError(f'{source} cannot be decoded as a video; it is damaged, cut off, or of an unknown codec')
    fps, frames = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    name = source if isinstance(source, int) else str(source)
    return video, VideoFacts(name, width, height, float(fps), frames if frames > 0 else None)


def _read_video(source: Path | str | int, name: str) -> Iterator[SourceItem]:
    video, facts = _open_video(source)
    item = SourceItem(name, video=facts)
    try:
        index = 0
        while True:
            done, frame = video.read()
            if not done:
                break
            yield replace(item, image=np.ascontiguousarray(frame[..., ::-1]), frame=index)
            del frame
            index += 1
    finally:
        video.release()
    if index == 0:
        raise ValueError(f'{source} has no frame that can be decoded; it is damaged or of an unknown codec')
    if facts.frames is not None and index < ENOUGH * facts.frames:
        error = ValueError(f'{source}: only {index} of its {facts.frames} frames can be decoded; it is cut off')
        yield replace(item, error=error)
