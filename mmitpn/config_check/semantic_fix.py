"""Write label maps anew where there is one way to repair them: other values than labels, gray colors, turned images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .dataset_entries import SPLITS, DatasetEntry, find_datasets
from .images import ImageLoader, build_image_loader, read_header, read_stored
from .messages import format_list, option_key
from .model import one_class_reason, two_class_options
from .semantic import IGNORED, Progress, build_semantic, is_gray, is_semantic, plan_fix

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image with an EXIF orientation is turned to stand upright."""


@dataclass
class LabelMapFix:
    """What was written.

    Args:
        values: Value in the files -> label in the new ones; None where the values were labels already.
        gray: Color images that were made label maps.
        turned: Label maps that were turned as their image is.
        written: Number of files.
        options: ``KEY=VALUE`` of the settings that use them, for ``--cfg-options``.
    """

    values: dict[int, int] | None = None
    gray: int = 0
    turned: int = 0
    written: int = 0
    options: list[str] = field(default_factory=list)


def fix_semantic(
    cfg: Mapping[str, Any],
    out: str | Path,
    *,
    splits: Sequence[str] = ('train', 'val'),
    progress: Progress | None = None,
) -> LabelMapFix:
    """Write the label maps of a config's semantic datasets into a new folder, repaired.

    Values are taken together over all datasets: black and white, or as many values as there are classes, become labels
    from 0 in their order (see `plan_fix`). Color images of grays become their one channel. Maps made for images as
    they are stored are turned as the loader turns the images. The files of the datasets stay as they are.

    Args:
        cfg: An mmengine ``Config``.
        out: The folder; each dataset gets one inside it.
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        progress: Wraps the indices to go through and a name, to show progress.

    Returns:
        What was done, and the settings to train on the result.

    Raises:
        ValueError: If nothing needs a repair, a map cannot be repaired, or the datasets name different classes.
        FileExistsError: If ``out`` holds files.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'--fix {out}: it is there already; name a new folder')
    progress = progress or (lambda indices, _: indices)
    folders = _find_folders(cfg, splits)
    number = _number_of_classes(folders)
    repair = LabelMapFix()
    values = _read_maps(folders, repair, progress)
    repair.values = plan_fix(values, number)
    if repair.values is None:
        reduced = bool(folders[0].dataset.reduce_zero_label)
        _refuse_unclear(repair, values, number=max(number, 2), reduced=reduced)
    for position, folder in enumerate(folders):
        folder.out = out / (folder.entry.split if len(folders) <= len(set(splits)) else str(position))
        for index in progress(range(len(folder.dataset)), f'{folder.entry.where}: writing'):
            folder.write(index, repair.values)
            repair.written += 1
    repair.options = _options(cfg, folders, reset=repair.values is not None)
    return repair


def _find_folders(cfg: Mapping[str, Any], splits: Sequence[str]) -> list[_LabelMapFolder]:
    """The folders of label maps of a config's datasets, each once."""
    scope = cfg.get('default_scope') or 'mmseg'
    folders: dict[str, _LabelMapFolder] = {}
    for entry in find_datasets(cfg, splits):
        if is_semantic(entry):
            folder = _LabelMapFolder(entry, build_semantic(entry, scope), scope)
            folders.setdefault(folder.prefix, folder)
    return list(folders.values())


def _number_of_classes(folders: Sequence[_LabelMapFolder]) -> int:
    """The number of classes, which all datasets must share."""
    several = {folder.entry.classes for folder in folders}
    if len(several) != 1:
        raise ValueError(f'--fix needs datasets of the same classes, but there are {format_list([*map(str, several)])}')
    return len(next(iter(several)) or ())


def _read_maps(folders: Sequence[_LabelMapFolder], repair: LabelMapFix, progress: Progress) -> set[int]:
    """Read all label maps; return their values, and count in ``repair`` what else there is to do."""
    values: set[int] = set()
    for folder in folders:
        for index in progress(range(len(folder.dataset)), f'{folder.entry.where}: reading'):
            labels, gray, turned = folder.read(index)
            values.update(np.unique(labels).tolist())
            repair.gray += gray
            repair.turned += turned
    return values


def _refuse_unclear(repair: LabelMapFix, values: set[int], *, number: int, reduced: bool) -> None:
    """Raise if the values have no single repair although they are not labels, or if nothing needs a repair."""
    if values - {IGNORED, *range(number + reduced)}:
        raise ValueError(
            f'the label maps hold {len(values)} values for {number} classes ({format_list(sorted(values))}), '
            'which can be seen in several ways; write maps with the labels of the classes yourself'
        )
    if not repair.gray and not repair.turned:
        raise ValueError('the label maps need no repair that --fix knows; nothing was written')


class _LabelMapFolder:
    """The label maps of one dataset."""

    def __init__(self, entry: DatasetEntry, dataset: Any, scope: str) -> None:
        self.entry, self.dataset = entry, dataset
        self.images: ImageLoader | None = build_image_loader(entry.cfg.get('pipeline'), scope=scope)
        self.prefix = str(dataset.data_prefix.get('seg_map_path') or '')
        self.suffix = Path(f'x{dataset.seg_map_suffix}').with_suffix('.png').name[1:]
        self.out = Path()

    def read(self, index: int) -> tuple[np.ndarray, bool, bool]:
        """The values of one map ``(height, width)``, whether it was a color image, and whether it was turned."""
        info = self.dataset.get_data_info(index)
        path = str(info.get('seg_map_path'))
        stored = read_stored(path)
        if stored is None:
            raise ValueError(
                f'{self.entry.where}: label map {path} is missing or cannot be read; restore it, or remove its image'
            )
        gray = stored.ndim == 3
        if gray and not is_gray(stored):
            raise ValueError(
                f'{self.entry.where}: label map {path} is a color image; write maps of one channel yourself'
            )
        labels = np.asarray(stored[..., 0] if gray else stored).astype(np.int64)
        header = read_header(info['img_path'])
        turned = False
        if header is not None and header.orientation in TURNS and labels.shape == header.size[::-1]:
            size = self.images.size(info['img_path']) if self.images else None
            turned = size is not None and size != header.size
        if turned:
            image = Image.fromarray(labels.astype(np.int32)).transpose(TURNS[header.orientation])
            labels = np.asarray(image).astype(np.int64)
        return labels, gray, turned

    def write(self, index: int, values: Mapping[int, int] | None) -> None:
        """Write one map, its values replaced."""
        labels, _, _ = self.read(index)
        if values is not None:
            known = sorted(values)
            labels = np.array([values[value] for value in known])[np.searchsorted(known, labels)]
        path = Path(self.dataset.get_data_info(index)['seg_map_path'])
        inside = self.prefix and path.is_relative_to(self.prefix)
        name = str(path.relative_to(self.prefix) if inside else path.name)
        target = self.out / (name.removesuffix(self.dataset.seg_map_suffix) + self.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(target)


def _options(cfg: Mapping[str, Any], folders: Sequence[_LabelMapFolder], *, reset: bool) -> list[str]:
    """The settings of all datasets that use one of the folders; ``reset`` says that labels now begin with 0."""
    by_prefix = {folder.prefix: folder for folder in folders}
    options = []
    datasets = find_datasets(cfg, SPLITS)
    for entry in datasets:
        prefix = (entry.cfg.get('data_prefix') or {}).get('seg_map_path')
        if not is_semantic(entry) or prefix is None:
            continue
        folder = by_prefix.get(str(entry.path(prefix))) or by_prefix.get(str(prefix))
        if folder is None:
            continue
        key = option_key(entry.where)
        options.append(f'{key}.data_prefix.seg_map_path={folder.out}')
        if folder.suffix != folder.dataset.seg_map_suffix:
            options.append(f'{key}.seg_map_suffix={folder.suffix}')
        if reset and folder.dataset.reduce_zero_label and one_class_reason(cfg, entry) is None:
            options.append(f'{key}.reduce_zero_label=False')
    if any(one_class_reason(cfg, entry) for entry in datasets if is_semantic(entry)):
        options += two_class_options(cfg, datasets)
    return options
