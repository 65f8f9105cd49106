"""The size of an image as the loader of a pipeline returns it, orientation tags included.

mmcv's ``LoadImageFromFile`` turns a JPEG whose EXIF data has an orientation tag, or leaves it as it is stored, by its
``imdecode_backend`` and ``color_type``. So the loader itself is asked; only where no setting of it can make a
difference is the size taken from the file's header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_types import type_name

ORIENTATION_TAG = 0x0112
_KEEPS_SIDES = (1, 2, 3, 4)
_HEADER_FORMATS = ('JPEG', 'MPO', 'PNG', 'BMP', 'WEBP')


class Header(NamedTuple):
    """What the header of an image file says.

    Args:
        size: Width and height as they are stored, before any turning.
        orientation: The EXIF orientation: 1 (upright) to 8, where the file says nothing else.
        format: Pillow's name of the format.
    """

    size: tuple[int, int]
    orientation: int
    format: str | None


def read_header(path: str | Path) -> Header | None:
    """Read the header of an image file.

    Args:
        path: The image.

    Returns:
        The header; None if Pillow cannot read it, which does not say that a loader cannot.
    """
    try:
        with Image.open(path) as image:
            return Header(image.size, image.getexif().get(ORIENTATION_TAG, 1), image.format)
    except Exception:  # noqa: BLE001 - damaged files raise OSError, ValueError, SyntaxError, struct.error ...
        return None


class ImageLoader:
    """The image loading transform of a pipeline, asked for sizes.

    Args:
        transform: A built transform that adds ``img`` to a dict with ``img_path``, as mmcv's ``LoadImageFromFile``.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    @property
    def name(self) -> str:
        """The transform with the settings that decide whether an orientation tag is applied, for messages."""
        settings = ('imdecode_backend', 'color_type')
        shown = [f'{key}={getattr(self.transform, key)!r}' for key in settings if hasattr(self.transform, key)]
        return f'{type(self.transform).__name__}({", ".join(shown)})'

    def size(self, path: str | Path) -> tuple[int, int] | None:
        """Load an image.

        Args:
            path: The image.

        Returns:
            Width and height in pixels as the pipeline sees them; None if the loader leaves the image out
            (``ignore_empty=True``).

        Raises:
            OSError: If the loader cannot read the file.
        """
        try:
            loaded = self.transform({'img_path': str(path)})
        except Exception as error:  # cv2.error, AssertionError, UnidentifiedImageError ... by the decoding backend
            raise OSError(f'{self.name} cannot read {path}: {error}') from error
        if loaded is None:
            return None
        height, width = loaded['img'].shape[:2]
        return width, height

    def quick_size(self, path: str | Path, *, header: Header | None = None) -> tuple[int, int] | None:
        """Width and height as :meth:`size` gives them, from the header of the file where that is certain.

        It is where the loader is mmcv's own, the format a common one, and the header has no orientation tag that
        exchanges width and height. Any other image is loaded. A file that is damaged behind its header is not noticed.

        Args:
            path: The image.
            header: Its header, if it was read before.

        Raises:
            OSError: If the loader cannot read the file.
        """
        return self._header_size(header or read_header(path)) or self.size(path)

    def _header_size(self, header: Header | None) -> tuple[int, int] | None:
        """Width and height in a file's header, or None where they may not be those of the loaded image."""
        if header is None or header.format not in _HEADER_FORMATS or header.orientation not in _KEEPS_SIDES:
            return None
        return header.size if self._is_plain() else None

    def _is_plain(self) -> bool:
        """Whether the loader is mmcv's, reads local files and keeps their sizes but for the orientation tag."""
        from mmcv.transforms import LoadImageFromFile

        kind = type(self.transform)
        if not isinstance(self.transform, LoadImageFromFile) or kind.transform is not LoadImageFromFile.transform:
            return False
        remote = any(
            (getattr(self.transform, key, None) or {}).get('backend', 'local') not in ('local', 'disk')
            for key in ('backend_args', 'file_client_args')
        )
        by_name = isinstance(self.transform.color_type, str)  # a number may be cv2.IMREAD_REDUCED_COLOR_2
        return not remote and by_name and self.transform.imdecode_backend in ('cv2', 'pillow', 'turbojpeg')


def stored_size(path: str | Path) -> tuple[tuple[int, int], int]:
    """Width and height of an image as it is stored, before any turning, and its EXIF orientation (1: upright).

    Args:
        path: The image.

    Raises:
        OSError: If Pillow cannot read the file.
    """
    header = read_header(path)
    if header is None:
        raise OSError(f'Pillow cannot read {path}')
    return header.size, header.orientation


def build_image_loader(pipeline: Sequence[Any] | None, *, scope: str | None = None) -> ImageLoader | None:
    """Build the image loader of a pipeline.

    Args:
        pipeline: The transforms' configs; empty or None takes mmcv's ``LoadImageFromFile`` with its defaults.
        scope: The config's ``default_scope``.

    Returns:
        The loader; None if no transform of the pipeline is one by its class or name, as with a transform that loads
        image and annotations together.
    """
    with DefaultScope.overwrite_default_scope(scope):
        for step in pipeline or ({'type': 'LoadImageFromFile'},):
            if _loads_images(step):
                return ImageLoader(TRANSFORMS.build(step) if isinstance(step, Mapping) else step)
    return None


def _loads_images(step: Any) -> bool:
    """Whether a transform (its config, or built) loads one image from ``img_path``, as LoadImageFromFile does."""
    from mmcv.transforms import LoadImageFromFile

    kind = step.get('type') if isinstance(step, Mapping) else type(step)
    name = type_name(kind)
    if isinstance(kind, str):
        kind = TRANSFORMS.get(kind)
    if name.startswith('LoadMulti') or name.endswith('NDArray'):
        return False
    return name.endswith('LoadImageFromFile') or (isinstance(kind, type) and issubclass(kind, LoadImageFromFile))
