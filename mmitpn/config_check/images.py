"""Images and label maps as the transforms of a pipeline load them, and the images that a COCO annotation file names.

mmcv's ``LoadImageFromFile`` rotates a JPEG whose EXIF data has an orientation tag, or leaves it as it is stored, by its
``imdecode_backend`` and ``color_type``. So the loader itself is asked; only where no setting of it can make a
difference is the size taken from the file's header.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_types import type_name
from mmitpn.utils import evenly_spaced

from .coco_annotations import corner_fits
from .messages import failed, format_list

ORIENTATION_TAG = 0x0112
_KEEPS_SIDES = (1, 2, 3, 4)
_HEADER_FORMATS = ('JPEG', 'MPO', 'PNG', 'BMP', 'WEBP')


class ImageHeader(NamedTuple):
    """What the header of an image file says.

    Args:
        size: Width and height as they are stored, before any turning.
        orientation: The EXIF orientation: 1 (upright) to 8, where the file says nothing else.
        format: Pillow's name of the format.
    """

    size: tuple[int, int]
    orientation: int
    format: str | None


def read_header(path: str | Path) -> ImageHeader | None:
    """Read the header of an image file.

    Args:
        path: The image.

    Returns:
        The header; None if Pillow cannot read it, which does not say that a loader cannot.
    """
    try:
        with Image.open(path) as image:
            return ImageHeader(image.size, image.getexif().get(ORIENTATION_TAG, 1), image.format)
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

    def quick_size(self, path: str | Path, *, header: ImageHeader | None = None) -> tuple[int, int] | None:
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

    def _header_size(self, header: ImageHeader | None) -> tuple[int, int] | None:
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


# --- loading label maps ---

FRAMEWORKS = ('mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmitpn', 'albumentations')
"""Packages whose transforms keep the labels of pixels, except for those that load them."""
OTHER_FILES = ('Image', 'Depth', 'Proposals', 'Embeddings')
"""Words in the names of transforms that load something else than label maps."""


class LabelLoader:
    """The transforms of a pipeline that decide about the labels of a file.

    Args:
        transforms: Built transforms, in the order of the pipeline: those that load label maps, and those of the user's
            own, which may change labels.
        image_loader: Adds ``img`` where a transform of the user's own may ask for it.
    """

    def __init__(self, transforms: Sequence[Any], image_loader: ImageLoader | None = None) -> None:
        self.transforms = list(transforms)
        self._image_loader = image_loader

    @property
    def name(self) -> str:
        """The transforms, for messages."""
        return ' and '.join(type_name(type(one)) for one in self.transforms)

    @property
    def reduce_zero_label(self) -> bool | None:
        """The reduce_zero_label of a loading transform; None where it follows the dataset."""
        given = [getattr(one, 'reduce_zero_label', None) for one in self.transforms]
        return next((value for value in given if value is not None), None)

    @property
    def keeps_values(self) -> bool:
        """Whether a label depends on the value of its pixel in the file only, as with mmseg's ``LoadAnnotations``."""
        from mmseg.datasets.transforms import LoadAnnotations

        one = self.transforms[0] if len(self.transforms) == 1 else None
        return isinstance(one, LoadAnnotations) and type(one)._load_seg_map is LoadAnnotations._load_seg_map

    def load(self, info: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Load the label map of an image.

        Args:
            info: What the dataset knows of the image (``BaseDataset.get_data_info``).

        Returns:
            The map ``(height, width)`` as it is loaded, for its size, and as all transforms leave it, for its labels;
            None if the transforms leave the image out or make no ``gt_seg_map``.

        Raises:
            OSError: If the file cannot be loaded.
        """
        results: Any = deepcopy(dict(info))
        if self._image_loader is not None and not self.keeps_values:
            with suppress(Exception):  # a broken image is reported where images are looked at
                results = self._image_loader.transform(results)
        loaded = None
        for transform in tuple(self.transforms):
            if results is None:
                return None
            if _loads_labels(transform):
                results = self._call(transform, results)
            else:
                try:
                    results = transform(deepcopy(results))
                except Exception:  # noqa: BLE001 - it may need what a transform that is not called here adds
                    self.transforms.remove(transform)
            if loaded is None and results is not None and 'gt_seg_map' in results:
                loaded = np.asarray(results['gt_seg_map'])
        return None if results is None or loaded is None else (loaded, np.asarray(results['gt_seg_map']))

    def _call(self, transform: Any, results: dict[str, Any]) -> Any:
        try:
            return transform(results)
        except Exception as error:  # whatever the decoding backend or a transform of the user's own raises
            kind = type_name(type(transform))
            raise OSError(f'{kind} cannot load {results.get("seg_map_path")}: {error}') from error

    def stored(self, path: str) -> np.ndarray | None:
        """The values in a file.

        Args:
            path: The label map.

        Returns:
            ``(height, width)``, or ``(height, width, channels)`` of a color image; None where the loader reads files in
            another way than mmseg's with Pillow, or the file cannot be read.
        """
        if not self.keeps_values or self.transforms[0].imdecode_backend != 'pillow':
            return None
        return read_stored(path)


def read_stored(path: str) -> np.ndarray | None:
    """The values in an image file, ``(height, width)`` or with channels behind; None if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return None


def build_label_loader(
    pipeline: Sequence[Any] | None, *, scope: str | None = 'mmseg', default: bool = False
) -> LabelLoader | None:
    """Build the transforms of a pipeline that load label maps.

    Args:
        pipeline: The configs of the transforms.
        scope: The config's ``default_scope``.
        default: Take mmseg's ``LoadAnnotations`` for an empty pipeline.

    Returns:
        The loader; None if no transform loads label maps, or the one that does is not registered.
    """
    steps = list(pipeline_steps(pipeline or ()))
    if not steps and default:
        steps = [{'type': 'mmseg.LoadAnnotations'}]
    with DefaultScope.overwrite_default_scope(scope):
        if not any(map(_loads_labels, steps)):
            return None
        chosen = [step for step in steps if _loads_labels(step) or _is_own(step)]
        transforms = [TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in chosen]
    return LabelLoader(transforms, build_image_loader(steps, scope=scope))


def pipeline_steps(pipeline: Any) -> Iterator[Any]:
    """The transforms of a pipeline and those inside them (``TestTimeAug``, ``RandomChoice`` ...)."""
    if isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from pipeline_steps(step)
    elif isinstance(pipeline, Mapping) and pipeline.get('transforms'):
        yield from pipeline_steps(pipeline['transforms'])
    else:
        yield pipeline


def _class_of(step: Any) -> type | None:
    """The class of a transform (its config, or built); None where it is not registered."""
    kind = step.get('type') if isinstance(step, Mapping) else type(step)
    if isinstance(kind, str):
        kind = TRANSFORMS.get(kind)
    return kind if isinstance(kind, type) else None


def _loads_labels(step: Any) -> bool:
    """Whether a transform loads label maps, by its class or name."""
    from mmcv.transforms import LoadAnnotations

    kind = _class_of(step)
    if kind is None:
        return False
    name = kind.__name__
    named = name.startswith('Load') and not any(word in name for word in OTHER_FILES)
    return named or issubclass(kind, LoadAnnotations)


def _is_own(step: Any) -> bool:
    """Whether a transform is none of the frameworks': it may change labels."""
    kind = _class_of(step)
    return kind is not None and kind.__module__.partition('.')[0] not in FRAMEWORKS


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
    return failed(
        (
            missing,
            (
                '{n} PNGs of segments are not there: {first}; mmdet names them after the image: file_name with .png '
                "for .jpg in the folder data_prefix['seg']"
            ),
        ),
        (
            other_size,
            (
                '{n} PNGs of segments have another size than their image: {first}; an EXIF orientation tag of the '
                'image turns it on loading, not its PNG'
            ),
        ),
        limit=4,
    )


def _compare(
    found: _SizeFindings,
    image: Mapping,
    size: tuple[int, int],
    header: ImageHeader | None,
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
    seen = [
        f'{number} fit only the images {what}'
        for number, what in ((found.as_stored, 'as stored'), (found.as_loaded, 'as turned'))
        if number
    ]
    rules = (
        (found.unreadable, f'{{n}} images cannot be read by {loader.name}: {{first}}; get them again'),
        (
            found.turned,
            (
                f'{{n}} images have an EXIF orientation tag, by which {loader.name} turns them, but the annotation '
                'file has their size before turning, so that boxes would be misplaced: {first}. Of the boxes of these '
                f'images, {" and ".join(seen) or "all fit both"}: if they belong to the images as stored, set '
                "color_type='color_ignore_orientation' in LoadImageFromFile of every pipeline; if they belong to the "
                'turned images, exchange width and height in the annotation file'
            ),
        ),
        (
            found.not_turned,
            (
                f'{{n}} images have an EXIF orientation tag, which {loader.name} does not apply, but the annotation '
                'file has the size of the turned images, so that boxes would be misplaced: {first}; set '
                "color_type='color' and imdecode_backend='cv2' in LoadImageFromFile of every pipeline"
            ),
        ),
        (
            found.other_size,
            '{n} images have another size than the file says: {first}; the boxes may be of other images',
        ),
    )
    return failed(*rules, limit=4)


def _warnings(found: _SizeFindings, loader: ImageLoader) -> list[str]:
    """What no size can decide."""
    text = (
        '{n} images have an EXIF orientation tag that leaves width and height as they are: {first}; check '
        f'by tools/analysis/browse_dataset.py CONFIG that the boxes fit the images as {loader.name} loads them'
    )
    return failed((found.undecided, text), limit=4)


def _size_text(size: tuple[int, int]) -> str:
    """A size in words, width first."""
    return f'{size[0]}x{size[1]}'
