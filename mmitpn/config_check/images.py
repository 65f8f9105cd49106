"""Image files: their size as the loader of a pipeline returns it, and the images that a COCO annotation file names.

mmcv's ``LoadImageFromFile`` rotates a JPEG whose EXIF data has an orientation tag, or leaves it as it is stored, by its
``imdecode_backend`` and ``color_type``. So the loader itself is asked; only where no setting of it can make a
difference is the size taken from the file's header.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_types import type_name
from mmitpn.utils import evenly_spaced

from .coco_annotations import corner_fits
from .messages import format_list

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


# --- the images of a COCO annotation file ---

HEADERS_READ = 1000
"""Image headers that are read at most, where not every image is loaded."""


def find_images(path: Path, images: Sequence[Mapping], img_dir: Path, number: int | None) -> int:
    """Look for image files.

    Args:
        path: The annotation file, for messages.
        images: Its entries of images.
        img_dir: Folder that their ``file_name`` starts from.
        number: How many images, evenly spaced over the file, to look for; None looks for all.

    Returns:
        How many were looked for; all of them are there.

    Raises:
        FileNotFoundError: If the folder or an image is not there.
    """
    if not img_dir.is_dir():
        raise FileNotFoundError(
            f'image folder {img_dir} of {path} not found; correct data_root or data_prefix, or put the images there'
        )
    chosen = [image['file_name'] for image in evenly_spaced(images, number)]
    missing = [name for name in chosen if not (img_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(chosen)} images of {path} looked for are not in {img_dir}: '
            f'{format_list(missing, limit=4)}; correct data_root or data_prefix, or put the images there'
        )
    return len(chosen)


@dataclass
class _SizeFindings:
    """Images by what is wrong with them, each with what was seen.

    ``as_stored`` and ``as_loaded`` count those of ``turned`` whose boxes fit the image only before or after turning.
    """

    unreadable: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    as_stored: int = 0
    as_loaded: int = 0
    not_turned: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


def check_image_sizes(
    images: Sequence[Mapping],
    img_dir: Path,
    loader: ImageLoader,
    *,
    corners: Mapping[Hashable, tuple[float, float]],
    sample: int | None,
    decode: bool,
) -> tuple[list[str], list[str]]:
    """Compare the sizes in an annotation file with those of the images as the pipeline's loader returns them.

    Args:
        images: Entries of images, with ``file_name``, ``width`` and ``height``.
        img_dir: Folder that their ``file_name`` starts from; files that are not there are left out.
        loader: The loader.
        corners: Image id -> the largest x and y of its boxes.
        sample: How many images, evenly spaced, to look at; None looks at all.
        decode: Load every image, which finds damaged ones; else the header is read where it decides (see
            `ImageLoader.quick_size`) and files that cannot be read are left out.

    Returns:
        Sentences about what is wrong, and about what only may be.
    """
    found = _SizeFindings()
    chosen = evenly_spaced(images, sample)
    for image in chosen:
        file = img_dir / image['file_name']
        if not file.is_file():
            continue
        header = read_header(file)
        try:
            size = loader.size(file) if decode else loader.quick_size(file, header=header)
        except OSError:
            if decode:
                found.unreadable.append(image['file_name'])
            continue
        if size is not None:
            _compare(found, image, size, header, corners.get(image['id']))
    return _problems(found, loader), _warnings(found, loader)


def check_segment_pngs(label_maps: Mapping[str, str], loader: ImageLoader | None, *, sample: int | None) -> list[str]:
    """Look for the PNGs of segments or labels of a dataset, and compare their sizes with those of the images.

    Args:
        label_maps: Image path -> path of its PNG, as mmdet's dataset derives it.
        loader: The loader of the images; None compares no sizes.
        sample: How many, evenly spaced, to look at; None looks at all.

    Returns:
        Sentences about what is wrong.
    """
    reader = build_image_loader(None)  # as LoadPanopticAnnotations reads them: cv2, in color
    missing, other_size = [], []
    for image, file in evenly_spaced(list(label_maps.items()), sample):
        if not Path(file).is_file():
            missing.append(f'{file} (for {Path(image).name})')
            continue
        try:
            size, wanted = reader.quick_size(file), None if loader is None else loader.quick_size(image)
        except OSError:
            missing.append(f'{file} (cannot be read)')
            continue
        if wanted is not None and size != wanted:
            other_size.append(f'{file} is {_size_text(size)}, the image as loaded {_size_text(wanted)}')
    problems = []
    if missing:
        problems.append(
            f'{len(missing)} PNGs of segments are not there: {format_list(missing, limit=4)}; mmdet names them after '
            'the '
            "image: file_name with .png for .jpg in the folder data_prefix['seg']"
        )
    if other_size:
        problems.append(
            f'{len(other_size)} PNGs of segments have another size than their image: '
            f'{format_list(other_size, limit=4)}; an EXIF orientation tag of the image turns it on loading, not its PNG'
        )
    return problems


def _compare(
    found: _SizeFindings,
    image: Mapping,
    size: tuple[int, int],
    header: Header | None,
    corner: tuple[float, float] | None,
) -> None:
    """Sort an image into the findings by its size as loaded, as stored, and in the annotation file."""
    name, given = image['file_name'], (image['width'], image['height'])
    stored = size if header is None else header.size
    tag = 1 if header is None else header.orientation
    if size == given:
        if tag in (2, 3, 4) or (tag in (5, 6, 7, 8) and size[0] == size[1]):
            found.undecided.append(name)
        return
    sizes = f'{name} (orientation tag {tag}): {_size_text(given)} in the file, {_size_text(size)} as loaded'
    if size == given[::-1] and stored == given and stored != size:
        found.turned.append(sizes)
        before, after = corner_fits(corner, stored), corner_fits(corner, size)
        found.as_stored += before and not after
        found.as_loaded += after and not before
    elif size == given[::-1] and stored == size and tag in (5, 6, 7, 8):
        found.not_turned.append(sizes)
    else:
        found.other_size.append(f'{name} is {_size_text(size)}, not {_size_text(given)}')


def _problems(found: _SizeFindings, loader: ImageLoader) -> list[str]:
    """One sentence for each way in which some images are wrong."""
    problems = []
    if found.unreadable:
        problems.append(
            f'{len(found.unreadable)} images cannot be read by {loader.name}: '
            f'{format_list(found.unreadable, limit=4)}; get them again'
        )
    if found.turned:
        seen = [
            f'{number} fit only the images {what}'
            for number, what in ((found.as_stored, 'as stored'), (found.as_loaded, 'as turned'))
            if number
        ]
        problems.append(
            f'{len(found.turned)} images have an EXIF orientation tag, by which {loader.name} turns them, but the '
            'annotation file has their size before turning, so that boxes would be misplaced: '
            f'{format_list(found.turned, limit=4)}. Of the boxes of these images, '
            f'{" and ".join(seen) or "all fit both"}: if they belong to the images as stored, set color_type='
            "'color_ignore_orientation' in LoadImageFromFile of every pipeline; if they belong to the turned images, "
            'exchange width and height in the annotation file'
        )
    if found.not_turned:
        problems.append(
            f'{len(found.not_turned)} images have an EXIF orientation tag, which {loader.name} does not apply, but the '
            f'annotation file has the size of the turned images, so that boxes would be misplaced: '
            f"{format_list(found.not_turned, limit=4)}; set color_type='color' and imdecode_backend='cv2' in "
            'LoadImageFromFile of every pipeline'
        )
    if found.other_size:
        problems.append(
            f'{len(found.other_size)} images have another size than the file says: '
            f'{format_list(found.other_size, limit=4)}; the boxes may be of other images'
        )
    return problems


def _warnings(found: _SizeFindings, loader: ImageLoader) -> list[str]:
    """What no size can decide."""
    if not found.undecided:
        return []
    text = (
        f'{len(found.undecided)} images have an EXIF orientation tag that leaves width and height as they are: '
        f'{format_list(found.undecided, limit=4)}; look (tools/analysis/browse_dataset.py CONFIG) whether the boxes '
        f'fit them as {loader.name} loads them'
    )
    return [text]


def _size_text(size: tuple[int, int]) -> str:
    """A size in words, width first."""
    return f'{size[0]}x{size[1]}'
