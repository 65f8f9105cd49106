"""A user's own dataset: which layout a folder has, what is in it, and the part of it that is held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmitpn.atomic import write_atomic
from mmitpn.tables import format_table

from .coco_layout import find_coco, read_coco
from .instance_layouts import InstanceSplit, iterate
from .label_map_layouts import Color, LabelMapSplit, find_label_maps, read_label_maps, write_label_maps
from .voc_layout import find_voc, read_voc
from .yolo_layout import find_yolo, read_yolo

TASKS = ('instances', 'semantic')
VAL_FRACTION = 0.15
LAYOUTS: dict[str, tuple[str, Callable[[Path], Any], Callable[..., Any]]] = {
    'COCO': ('instances', find_coco, read_coco),
    'YOLO': ('instances', find_yolo, read_yolo),
    'Pascal VOC': ('instances', find_voc, read_voc),
    'images and label maps': ('semantic', find_label_maps, read_label_maps),
}


@dataclass(frozen=True)
class OwnData:
    """A dataset as it was found in a folder.

    Attributes:
        root: The folder.
        layout: Which of ``LAYOUTS`` it has.
        task: ``instances`` (boxes, maybe masks) or ``semantic``.
        classes: Names by label.
        splits: Of ``train``, ``val`` and ``test``, those that are there.
        palette: Colors of the classes where a file tells them.
        reduce_zero_label: Of label maps: whether label 0 means "no class".
        new_labels: Of label maps: the label of each value, where copies have to be written.
        notes: Remarks for the log.
    """

    root: Path
    layout: str
    task: str
    classes: tuple[str, ...]
    splits: dict[str, InstanceSplit] | dict[str, LabelMapSplit]
    palette: tuple[Color, ...] | None = None
    reduce_zero_label: bool = False
    new_labels: dict[int | Color, int] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def has_masks(self) -> bool:
        """Whether some object has a mask."""
        return self.task == 'instances' and any(split.num_masks for split in self.splits.values())

    def table(self) -> str:
        """What was found, as a table: images, objects, masks and classes of each split."""

        def below(path: Path) -> str:
            return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

        rows = []
        for name in sorted(self.splits, key=('train', 'val', 'test').index):
            split = self.splits[name]
            if isinstance(split, InstanceSplit):
                counts = [split.num_objects, split.num_masks, split.num_images - split.num_images_with_objects]
                rows.append([name, split.num_images, *counts, below(split.ann_file) if split.ann_file else 'converted'])
            else:
                rows.append([name, split.num_images, below(split.images), below(split.maps)])
        columns = {
            'instances': ['objects', 'masks', 'empty images', 'annotations'],
            'semantic': ['image folder', 'label maps'],
        }
        return format_table(['split', 'images', *columns[self.task]], rows)

    def describe(self) -> str:
        """Layout, classes, table and remarks for the log."""
        shown = ', '.join(self.classes[:20]) + (' ...' if len(self.classes) > 20 else '')
        lines = [f'{self.root}: {self.layout}, {len(self.classes)} classes: {shown}', self.table()]
        return '\n'.join([*lines, *(f'- {note}' for note in self.notes)])


def read_own_data(
    folder: str | Path,
    *,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = iterate,
) -> OwnData:
    """Recognize the layout of a dataset and read it.

    Args:
        folder: Folder of the dataset, in COCO's, YOLO's or Pascal VOC's layout, or with images and label maps.
        task: ``instances`` or ``semantic``: which data are wanted where a folder has both; None takes what is there.
        classes: Names of the classes, where no file has them or another order is wanted.
        progress: Wraps what is gone through, with a text.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: If there is no such folder, or a folder that a file names.
        ValueError: If it has no layout or several, no classes, an empty split, or a broken file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {str(folder)!r} for --data; give the folder of a dataset')
    if task not in (None, *TASKS):
        raise ValueError(f'task is {task!r}; allowed: {", ".join(TASKS)}')
    root = root.resolve()
    found = _find_layouts(root)
    wanted = [name for name in found if task is None or LAYOUTS[name][0] == task]
    if not found:
        inside = [path.name for path in sorted(root.iterdir()) if path.is_dir() and _find_layouts(path)]
        advice = f'give its folder {" or ".join(inside[:3])}' if inside else 'docs/own_data.md shows each of them'
        raise ValueError(f'{root} has none of the layouts {", ".join(LAYOUTS)} (it holds {_content(root)}); {advice}')
    if not wanted:
        raise ValueError(_other_task(root, next(iter(found)), task or ''))
    if len(wanted) > 1:
        raise ValueError(
            f'{root} has several layouts: {", ".join(wanted)}; keep the files of one of them in the folder, so that it '
            'is clear which annotations count (a config, or mmitpn data inspect DIR --task, chooses between objects and'
            ' label maps)'
        )
    kind, _, read = LAYOUTS[wanted[0]]
    data = read(root, found[wanted[0]], classes, progress)
    fields = {
        name: getattr(data, name) for name in ('palette', 'reduce_zero_label', 'new_labels') if kind == 'semantic'
    }
    notes = list(data.notes)
    if len(found) > 1:
        notes.append(f'{", ".join(name for name in found if name not in wanted)} is there too, and is not used')
    splits, more = _check_splits(root, data.splits)
    notes += [*more, *_shared_images(splits)]
    return OwnData(root, wanted[0], kind, data.classes, splits, notes=tuple(notes), **fields)


def _find_layouts(root: Path) -> dict[str, Any]:
    """The layouts that a folder has, with their files."""
    return {name: files for name, (_, find, _) in LAYOUTS.items() if (files := find(root))}


def _content(root: Path) -> str:
    """The first names in a folder."""
    names = sorted(f'{path.name}/' if path.is_dir() else path.name for path in root.iterdir())
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') if names else 'nothing'


def _other_task(root: Path, layout: str, task: str) -> str:
    """What to say to a dataset of another kind than the config."""
    if task == 'semantic':
        return (
            f'{root} has boxes or masks of objects ({layout}), but the config is for semantic segmentation: use a '
            'detection or instance segmentation config (dino, mask_dino ...-instance, mask_rcnn), or label maps'
        )
    return (
        f'{root} has label maps for semantic segmentation, but the config is for detection or instance segmentation: '
        'use a semantic config (upernet, mask_dino ...-ade20k), or annotate objects'
    )


def _shared_images(splits: Mapping[str, InstanceSplit | LabelMapSplit]) -> list[str]:
    """Remarks on images that are trained on and evaluated: scores on them say little."""
    files = {name: {str(split.images / one) for one in _image_names(split)} for name, split in splits.items()}
    shared = {name: len(files[name] & files['train']) for name in files if name != 'train'}
    return [
        f'WARNING: {number} of the {len(files[name])} {name} images are also in train: scores on them are too high'
        for name, number in shared.items()
        if number
    ]


def _image_names(split: InstanceSplit | LabelMapSplit) -> Iterable[str]:
    return (
        (image['file_name'] for image in split.content['images']) if isinstance(split, InstanceSplit) else split.names
    )


def _check_splits(root: Path, splits: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Raise for a split without images or without objects; a test set without objects is left out."""
    notes = []
    if 'train' not in splits:
        raise ValueError(f'{root} has no training split (found: {", ".join(splits) or "none"}); name one of them train')
    for name, split in list(splits.items()):
        if not split.num_images:
            raise ValueError(f'the {name} split of {root} is empty: it has no image; add images, or remove the split')
        if isinstance(split, InstanceSplit) and not split.num_objects:
            if name != 'test':
                raise ValueError(
                    f'the {name} split of {root} is empty: none of its {split.num_images} images has an object; '
                    'annotate some, or remove the split'
                )
            notes.append(f'the test split has {split.num_images} images and no object, and is not used')
            del splits[name]
    return splits, notes


def split_off_validation(data: OwnData, *, fraction: float | None = None, seed: int = 0) -> OwnData:
    """Hold a part of the training images out where there is no validation set.

    Args:
        data: The dataset.
        fraction: The fraction of the training images that is held out, at least one image; None: 0.15.
        seed: Which of them: the same images for a seed, on any machine and in any layout.

    Returns:
        The dataset with a validation split; the same one if it has one.

    Raises:
        ValueError: If there is a validation split and ``fraction`` is given, ``fraction`` is not between 0 and 1, or
            there are too few images to hold some out.
    """
    if 'val' in data.splits:
        if fraction is not None:
            raise ValueError(
                f'--val-fraction {fraction} is for data without a validation set, but {data.root} has one of '
                f'{data.splits["val"].num_images} images; leave the option out'
            )
        return data
    part = VAL_FRACTION if fraction is None else fraction
    if not 0 < part < 1:
        raise ValueError(f'--val-fraction is {fraction}; give a number between 0 and 1')
    train = data.splits['train']
    if train.num_images < 2:
        raise ValueError(f'{data.root} has {train.num_images} image and no validation set; give at least two images')
    number = min(max(round(train.num_images * part), 1), train.num_images - 1)
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(100):  # drawn again while one part has no object
        order = rng.permutation(train.num_images).tolist()
        parts = {'train': train.select(order[number:]), 'val': train.select(order[:number])}
        if all(isinstance(split, LabelMapSplit) or split.num_objects for split in parts.values()):
            break
    else:
        raise ValueError(
            f'{data.root} has no validation set, and too few images with objects to hold some out; annotate more, or '
            f'give another --val-fraction than {part:g}'
        )
    note = f'no validation set: {number} of {train.num_images} training images are held out, drawn with seed {seed}'
    return replace(data, splits={**data.splits, **parts}, notes=(*data.notes, note))


def write_own_data(data: OwnData, folder: str | Path) -> OwnData:
    """Write the annotations in a format that mmdet and mmseg read, where no file has it; images stay where they are.

    Args:
        data: The dataset.
        folder: Folder for the files: ``train.json`` ... of boxes and masks; lists of names, and label maps where they
            need other labels.

    Returns:
        The dataset with its files.
    """
    folder = Path(folder).resolve()
    splits: dict[str, Any] = {}
    for name, split in data.splits.items():
        if isinstance(split, InstanceSplit):
            if split.ann_file is None:
                write_atomic(folder / f'{name}.json', json.dumps(split.content).encode())
                split = replace(split, ann_file=folder / f'{name}.json')
        else:
            if data.new_labels is not None:
                split = write_label_maps(split, data.new_labels, folder / 'label_maps' / name)
            if not split.is_folder:
                write_atomic(folder / f'{name}.txt', ''.join(f'{one}\n' for one in split.names).encode())
        splits[name] = split
    return replace(data, splits=splits)
