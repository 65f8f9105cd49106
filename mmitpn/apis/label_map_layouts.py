"""Images with label maps: folders of images and masks, and the layouts of ADE20K, Roboflow, CVAT and Pascal VOC."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmitpn.atomic import write_atomic
from mmitpn.config_check.messages import format_list
from mmitpn.config_check.semantic import is_gray, plan_fix

from .instance_layouts import (
    IMAGE_FOLDERS,
    Progress,
    has_files,
    list_images,
    read_class_list,
    read_split_lists,
    split_folders,
)

MAP_FOLDERS = ('annotations', 'masks', 'mask', 'labels', 'SegmentationClass', 'label', 'gt')
MAP_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff')
IGNORED = 255
ADE20K_FILES = ('objectInfo150.txt', 'sceneCategories.txt')  # of the official download

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMapSplit:
    """One split of images with label maps.

    Attributes:
        images: Folder of the images.
        maps: Folder of the label maps.
        names: Names of the images without ``image_suffix``, sorted.
        image_suffix: What follows the name of each image.
        map_suffix: What follows the name of each label map.
        is_folder: Whether the names are all of the folder, so that they need not be listed.
        labels: How many maps have each value, as they are stored (a color is its triple).
    """

    images: Path
    maps: Path
    names: tuple[str, ...]
    image_suffix: str
    map_suffix: str
    is_folder: bool
    labels: Counter[int | Color] = field(default_factory=Counter)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.names)

    def map_of(self, name: str) -> Path:
        """The label map of an image."""
        return self.maps / f'{name}{self.map_suffix}'

    def select(self, indices: Iterable[int]) -> LabelMapSplit:
        """The images with these indices, in their order."""
        return replace(self, names=tuple(self.names[index] for index in sorted(indices)), is_folder=False)


@dataclass(frozen=True)
class LabelMapData:
    """What the reader found.

    Attributes:
        classes: Names by label.
        splits: By name.
        palette: Colors of the classes where a file tells them.
        reduce_zero_label: Whether label 0 means "no class", and label 1 the first class.
        new_labels: What each value in the files stands for, where label maps have to be written; None where the files
            can be read as they are.
        notes: Remarks for the log.
    """

    classes: tuple[str, ...]
    splits: dict[str, LabelMapSplit]
    palette: tuple[Color, ...] | None
    reduce_zero_label: bool
    new_labels: dict[int | Color, int] | None
    notes: tuple[str, ...]


# --- folders ---------------------------------------------------------------------------------------------------------


def find_label_maps(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and label maps by split; '' where files of names, or nothing, tell the splits."""
    for images in (root / name for name in IMAGE_FOLDERS):
        maps = [root / name for name in MAP_FOLDERS if (root / name).is_dir()]
        below = split_folders(images)
        for folder in maps if below else ():
            of_maps = split_folders(folder)
            pairs = {split: (below[split], of_maps[split]) for split in below if split in of_maps}
            pairs = {split: pair for split, pair in pairs.items() if _has_maps(pair[1])}
            if pairs:
                return pairs
        for folder in maps:
            if images.is_dir() and _has_maps(folder):
                return {'': (images, folder)}
    found = {}
    for split, folder in split_folders(root).items():
        images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
        maps = next((folder / name for name in MAP_FOLDERS if _has_maps(folder / name)), None)
        if images is not None and maps is not None:
            found[split] = (images, maps)
        elif has_files(folder, '*_mask.png'):
            found[split] = (folder, folder)
    if not found and has_files(root, '*_mask.png'):
        return {'': (root, root)}
    return found


def _has_maps(folder: Path) -> bool:
    """Whether a folder holds files that can be label maps; those of COCO's panoptic format are none."""
    return 'panoptic' not in folder.name and any(has_files(folder, f'*{suffix}') for suffix in MAP_SUFFIXES)


def _pair_files(split: str, images: Path, maps: Path) -> LabelMapSplit:
    """Pair the images of a folder with their label maps, by name."""
    map_files = {path.name for path in maps.iterdir() if path.suffix.lower() in MAP_SUFFIXES}
    files = [path for path in list_images(images) if path.parent == images]
    if images == maps:
        files = [path for path in files if not path.stem.endswith('_mask')]
        map_files = {name for name in map_files if Path(name).stem.endswith('_mask')}
    if not files:
        raise ValueError(f'{images} holds no image, so the {split or "training"} split is empty; put images there')
    image_suffixes = Counter(path.suffix for path in files)
    if len(image_suffixes) > 1:
        raise ValueError(
            f'{images} holds images of several endings ({format_list(dict(image_suffixes))}), but mmseg reads one; '
            'convert them to one format'
        )
    suffixes = [f'{end}{suffix}' for suffix in MAP_SUFFIXES for end in ('', '_mask', '_label', '_labelIds')]
    suffix = max(suffixes, key=lambda one: sum(f'{path.stem}{one}' in map_files for path in files))
    without = [path.name for path in files if f'{path.stem}{suffix}' not in map_files]
    if without:
        raise ValueError(
            f'{len(without)} of {len(files)} images in {images} have no label map NAME{suffix} in {maps}: '
            f'{format_list(without, limit=4)}; add the maps, or remove the images'
        )
    left = sorted(map_files - {f'{path.stem}{suffix}' for path in files})
    if left:
        raise ValueError(
            f'{len(left)} label maps in {maps} have no image in {images}: {format_list(left, limit=4)}; add the '
            'images, or remove the maps'
        )
    names = tuple(sorted(path.stem for path in files))
    return LabelMapSplit(images, maps, names, files[0].suffix, suffix, is_folder=images != maps)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_label_maps(
    root: Path, found: dict[str, tuple[Path, Path]], classes: Sequence[str] | None, progress: Progress
) -> LabelMapData:
    """Read images with label maps, and which labels the maps hold.

    Args:
        root: The folder.
        found: What :func:`find_label_maps` found in it.
        classes: Names by label; None takes those of ``classes.txt``, ``labelmap.txt`` or ``_classes.csv``.
        progress: Wraps what is gone through.

    Raises:
        ValueError: If an image has no map or a map no image, or the labels and classes do not fit.
    """
    root = root.resolve()
    splits = {split: _pair_files(split, *pair) for split, pair in found.items()}
    if list(splits) == ['']:
        splits = _divide(root, splits[''])
    for split, one in splits.items():
        for name in progress(one.names, f'reading {split}'):
            one.labels.update(set(_values(one.map_of(name))))
    values = {value for one in splits.values() for value in one.labels}
    colors = read_label_colors(root)
    names = tuple(classes) if classes is not None else _read_names(root, colors)
    notes: list[str] = []
    palette = None
    new_labels: dict[int | Color, int] | None = None
    if any(isinstance(value, tuple) for value in values):
        new_labels = _labels_of_colors(root, splits, colors)
        palette = tuple(colors.values())
        notes.append(f'colors of {root / "labelmap.txt"} become labels in copies of the maps')
    elif names is None and _is_ade20k(root, values):
        notes.append("classes and labels are ADE20K's: 150 classes, 0 is no class")
        names, reduce = _ade20k_classes(), True
        _check_values(splits, len(names), reduce=reduce)
        return LabelMapData(names, splits, None, reduce, None, tuple(notes))
    elif {0, IGNORED} == values and (names is None or len(names) <= 2):
        new_labels = plan_fix(values, 2)
        names = names if names is not None and len(names) == 2 else ('background', *(names or ('foreground',)))
        notes.append(f'the maps hold 0 and 255 only: 255 becomes label 1, {names[1]!r}, in copies of the maps')
    if names is None:
        highest = max((value for value in values if isinstance(value, int) and value != IGNORED), default=0)
        names = tuple(f'class_{label}' for label in range(highest + 1))
        notes.append(
            f'no file names the classes, so the labels 0 to {highest} are called class_0 ...; give --classes NAME NAME '
            '..., or a file classes.txt with a name in each line'
        )
    reduce = new_labels is None and max(values - {IGNORED}, default=0) == len(names) and len(names) > 0
    if reduce:
        notes.append(f'{len(names)} classes have the labels 1 to {len(names)}, so label 0 is no class')
    if new_labels is None:
        _check_values(splits, len(names), reduce=reduce)
    return LabelMapData(names, splits, palette, reduce, new_labels, tuple(notes))


def _divide(root: Path, both: LabelMapSplit) -> dict[str, LabelMapSplit]:
    """Divide one folder by the lists of VOC's layout, if they are there."""
    lists = read_split_lists(root / 'ImageSets' / 'Segmentation')
    if not lists:
        return {'train': both}
    index = {name: position for position, name in enumerate(both.names)}
    for split, names in lists.items():
        missing = [name for name in names if name not in index]
        if missing:
            raise ValueError(
                f'ImageSets/Segmentation/{split}.txt names {len(missing)} images that {both.images} does not have: '
                f'{format_list(missing, limit=4)}'
            )
    return {
        split: replace(both.select(index[name] for name in names), labels=Counter()) for split, names in lists.items()
    }


def read_stored_map(path: Path) -> np.ndarray:
    """A label map as it is stored: labels ``(H, W)``, or colors ``(H, W, 3)``; colors of grays only are labels."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'{path} is not a readable label map: {error}; write it again') from error
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.ndim == 3:
        return pixels[..., 0] if is_gray(pixels) else pixels[..., :3]
    return pixels


def _values(path: Path) -> Iterable[int | Color]:
    """The labels or colors that a map holds."""
    pixels = read_stored_map(path)
    if pixels.ndim == 2:
        return np.unique(pixels).tolist()
    return [tuple(color) for color in np.unique(pixels.reshape(-1, 3), axis=0).tolist()]


# --- names and labels ------------------------------------------------------------------------------------------------


def read_label_colors(root: Path) -> dict[str, Color]:
    """The colors of classes in CVAT's ``labelmap.txt`` (``name:r,g,b::``), in its order; empty without one."""
    path = root / 'labelmap.txt'
    if not path.is_file():
        return {}
    colors = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        name, *rest = line.split(':')
        if not line.strip() or line.startswith('#'):
            continue
        try:
            red, green, blue = map(int, rest[0].split(','))
        except (ValueError, IndexError) as error:
            raise ValueError(f'{path}: a line is {line!r}; write NAME:RED,GREEN,BLUE::') from error
        colors[name.strip()] = (red, green, blue)
    return colors


def _read_names(root: Path, colors: dict[str, Color]) -> tuple[str, ...] | None:
    """The names of the classes by label, of the files that label tools write."""
    if colors:
        return tuple(colors)
    for path in (root / '_classes.csv', *(folder / '_classes.csv' for folder in split_folders(root).values())):
        if path.is_file():
            rows = list(csv.reader(path.read_text(encoding='utf-8').splitlines(), skipinitialspace=True))
            numbers = {int(row[0]): row[1].strip() for row in rows if len(row) > 1 and row[0].strip().isdigit()}
            if sorted(numbers) != list(range(len(numbers))) or not numbers:
                raise ValueError(f'{path} numbers the classes {sorted(numbers)}; number them from 0 without gaps')
            return tuple(numbers[label] for label in range(len(numbers)))
    names = read_class_list(root)
    return tuple(names) if names else None


def _is_ade20k(root: Path, values: set) -> bool:
    """Whether a folder is ADE20K itself, by the files of its download or its name and highest label."""
    official = any((root / name).is_file() for name in ADE20K_FILES)
    return official or (root.name == 'ADEChallengeData2016' and max(values - {IGNORED}, default=0) == 150)


def _ade20k_classes() -> tuple[str, ...]:
    from mmseg.datasets import ADE20KDataset  # names only; mmseg is there where its config is trained

    return tuple(ADE20KDataset.METAINFO['classes'])


def _labels_of_colors(root: Path, splits: dict[str, LabelMapSplit], colors: dict[str, Color]) -> dict[int | Color, int]:
    """The label of each color."""
    if not colors:
        raise ValueError(
            f'{root} has label maps that are color images; add labelmap.txt with a line NAME:RED,GREEN,BLUE:: for each '
            'class, or write maps of one channel whose values are the labels'
        )
    labels: dict[int | Color, int] = {color: label for label, color in enumerate(colors.values())}
    labels.update({color[0]: label for color, label in labels.items() if len(set(color)) == 1})  # black is a gray
    for split, one in splits.items():
        wrong = sorted(str(value) for value in one.labels if value not in labels)
        if wrong:
            raise ValueError(
                f'label maps of {split} in {one.maps} have colors that {root / "labelmap.txt"} does not name: '
                f'{format_list(wrong, limit=4)}; add their classes, or correct the maps'
            )
    return labels


def _check_values(splits: dict[str, LabelMapSplit], number: int, *, reduce: bool) -> None:
    """Raise where a map has a label that no class has."""
    for split, one in splits.items():
        wrong = sorted(value for value in one.labels if value != IGNORED and value > number - 1 + reduce)
        if wrong:
            raise ValueError(
                f'label maps of {split} in {one.maps} have the labels {format_list(wrong)}, but there are {number} '
                f'classes: 0 to {number - 1} (255 is ignored); name every class, or correct the maps'
            )


def write_label_maps(split: LabelMapSplit, new_labels: dict[int | Color, int], folder: Path) -> LabelMapSplit:
    """Write the label maps of a split with other labels.

    Args:
        split: The split.
        new_labels: The label of each value or color in its files.
        folder: Where to write PNG files of one channel.

    Returns:
        The split with the new maps.
    """
    for name in split.names:
        pixels = read_stored_map(split.map_of(name))
        labels = np.full(pixels.shape[:2], IGNORED, dtype=np.uint8)
        for value, label in new_labels.items():
            if pixels.ndim == 2 and isinstance(value, int):
                labels[pixels == value] = label
            elif pixels.ndim == 3 and isinstance(value, tuple):
                labels[(pixels == value).all(axis=-1)] = label
        buffer = io.BytesIO()
        Image.fromarray(labels).save(buffer, 'PNG')
        path = folder / f'{name}.png'
        if not path.is_file() or path.read_bytes() != buffer.getvalue():  # another process may read it already
            write_atomic(path, buffer.getvalue())
    return replace(split, maps=folder, map_suffix='.png')
