"""The image files of a COCO annotation file: whether they are there, and have the size that the annotations assume."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .coco_entries import corner_fits
from .image_size import Header, ImageLoader, build_image_loader, read_header
from .wording import listing

HEADERS_READ = 1000
Item = TypeVar('Item')


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
    chosen = [image['file_name'] for image in _spread(images, number)]
    missing = [name for name in chosen if not (img_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(chosen)} images of {path} looked for are not in {img_dir}: '
            f'{listing(missing, limit=4)}; correct data_root or data_prefix, or put the images there'
        )
    return len(chosen)


@dataclass
class _Findings:
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
    found = _Findings()
    chosen = _spread(images, sample)
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


def check_label_maps(label_maps: Mapping[str, str], loader: ImageLoader | None, *, sample: int | None) -> list[str]:
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
    for image, file in _spread(list(label_maps.items()), sample):
        if not Path(file).is_file():
            missing.append(f'{file} (for {Path(image).name})')
            continue
        try:
            size, wanted = reader.quick_size(file), None if loader is None else loader.quick_size(image)
        except OSError:
            missing.append(f'{file} (cannot be read)')
            continue
        if wanted is not None and size != wanted:
            other_size.append(f'{file} is {_text(size)}, the image as loaded {_text(wanted)}')
    problems = []
    if missing:
        problems.append(
            f'{len(missing)} PNGs of segments are not there: {listing(missing, limit=4)}; mmdet names them after the '
            "image: file_name with .png for .jpg in the folder data_prefix['seg']"
        )
    if other_size:
        problems.append(
            f'{len(other_size)} PNGs of segments have another size than their image: {listing(other_size, limit=4)}; '
            'an EXIF orientation tag of the image turns it on loading, not its PNG'
        )
    return problems


def _compare(
    found: _Findings,
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
    sizes = f'{name} (orientation tag {tag}): {_text(given)} in the file, {_text(size)} as loaded'
    if size == given[::-1] and stored == given and stored != size:
        found.turned.append(sizes)
        before, after = corner_fits(corner, stored), corner_fits(corner, size)
        found.as_stored += before and not after
        found.as_loaded += after and not before
    elif size == given[::-1] and stored == size and tag in (5, 6, 7, 8):
        found.not_turned.append(sizes)
    else:
        found.other_size.append(f'{name} is {_text(size)}, not {_text(given)}')


def _problems(found: _Findings, loader: ImageLoader) -> list[str]:
    """One sentence for each way in which some images are wrong."""
    problems = []
    if found.unreadable:
        problems.append(
            f'{len(found.unreadable)} images cannot be read by {loader.name}: {listing(found.unreadable, limit=4)}; '
            'get them again'
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
            f'{listing(found.turned, limit=4)}. Of the boxes of these images, '
            f'{" and ".join(seen) or "all fit both"}: if they belong to the images as stored, set color_type='
            "'color_ignore_orientation' in LoadImageFromFile of every pipeline; if they belong to the turned images, "
            'exchange width and height in the annotation file'
        )
    if found.not_turned:
        problems.append(
            f'{len(found.not_turned)} images have an EXIF orientation tag, which {loader.name} does not apply, but the '
            f'annotation file has the size of the turned images, so that boxes would be misplaced: '
            f"{listing(found.not_turned, limit=4)}; set color_type='color' and imdecode_backend='cv2' in "
            'LoadImageFromFile of every pipeline'
        )
    if found.other_size:
        problems.append(
            f'{len(found.other_size)} images have another size than the file says: '
            f'{listing(found.other_size, limit=4)}; the boxes may be of other images'
        )
    return problems


def _warnings(found: _Findings, loader: ImageLoader) -> list[str]:
    """What no size can decide."""
    if not found.undecided:
        return []
    text = (
        f'{len(found.undecided)} images have an EXIF orientation tag that leaves width and height as they are: '
        f'{listing(found.undecided, limit=4)}; look (tools/analysis/browse_dataset.py CONFIG) whether the boxes fit '
        f'them as {loader.name} loads them'
    )
    return [text]


def _spread(items: Sequence[Item], number: int | None) -> list[Item]:
    """At most ``number`` items, evenly spaced; all for None."""
    number = len(items) if number is None else min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def _text(size: tuple[int, int]) -> str:
    """A size in words."""
    return f'{size[0]}x{size[1]}'
