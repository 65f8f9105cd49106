"""The layout of COCO, under any file names, and those of Roboflow and CVAT."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmitpn.config_check.messages import did_you_mean, format_list

from .instance_layouts import (
    InstanceData,
    InstanceSplit,
    Progress,
    check_same_names,
    split_folders,
    split_of,
)

OTHER_JSON = ('panoptic', 'captions', 'keypoints', 'stuff', 'info', 'unlabeled')  # words in names of COCO's other files


def find_coco(root: Path) -> dict[Path, dict[str, Any]]:
    """The COCO annotation files of instances of a folder, with what they hold.

    Raises:
        ValueError: If a file with the ending .json is not valid JSON.
    """
    folders = [root, root / 'annotations', *split_folders(root).values()]
    found = {}
    for path in sorted({path for folder in folders for path in folder.glob('*.json')}):
        if set(re.findall('[a-z]+', path.stem.lower())) & set(OTHER_JSON):
            continue
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f'{path} is broken: {error}; write it again, or remove it') from error
        if isinstance(content, dict) and isinstance(content.get('images'), list) and 'categories' in content:
            found[path] = content
    return found


def read_coco(
    root: Path, files: dict[Path, dict[str, Any]], classes: Sequence[str] | None, progress: Progress
) -> InstanceData:
    """Read COCO's layout, under any file names; Roboflow's and CVAT's too.

    A file is used as it is, unless its images are not sorted by name, its categories not by id, those of two files
    differ, or Roboflow's category 0, which only names the group of the others, has to be dropped.

    Args:
        root: The folder.
        files: What :func:`find_coco` found in it.
        classes: The classes in the order wanted; None takes them by category id.
        progress: Wraps what is gone through.

    Raises:
        ValueError: If two files are of the same split, the classes of two splits differ, or there are none.
        FileNotFoundError: If no folder has the images.
    """
    del progress
    by_split: dict[str, list[Path]] = {}
    for path in files:
        folder = '' if path.parent == root else path.parent.name
        by_split.setdefault(split_of(path.stem) or split_of(folder) or '', []).append(path)
    notes = []
    if list(by_split) == ['']:
        by_split = {'train': by_split['']}
    unnamed = by_split.pop('', [])
    notes += [f'{path} is passed over: its name says neither train, val nor test' for path in unnamed]
    chosen = {split: _choose(split, paths) for split, paths in by_split.items()}
    contents = {split: files[path] for split, path in chosen.items()}
    group = _group_category(list(contents.values()))
    if group is not None:
        notes.append(f'category 0 {group!r} is dropped: it has no object, and is the supercategory of the others')
    categories = _order_categories(chosen, contents, group, classes)
    splits = {}
    for split, path in chosen.items():
        content = {'info': {}, 'licenses': [], 'annotations': [], **contents[split]}
        ordered = _canonical(content, categories, path)
        as_it_is = all(ordered[key] == contents[split].get(key) for key in ('images', 'annotations', 'categories'))
        if not as_it_is and group is None:
            notes.append(f'{path}: images are sorted by name and categories by id in a copy')
        images = _find_image_folder(root, path, [one['file_name'] for one in ordered['images']], split)
        splits[split] = InstanceSplit(images, ordered, path if as_it_is else None)
    return InstanceData(tuple(categories), splits, tuple(notes))


def _choose(split: str, paths: list[Path]) -> Path:
    """The one file of a split."""
    instances = [path for path in paths if path.name.startswith('instances')]
    if len(paths) > 1 and len(instances) != 1:
        raise ValueError(
            f'{format_list([str(path) for path in paths])} are all COCO files for {split}; keep one of them in the '
            'folder'
        )
    return instances[0] if len(paths) > 1 else paths[0]


def _group_category(contents: list[dict[str, Any]]) -> str | None:
    """The name of Roboflow's category 0, which stands for all others and has no object; None without one."""
    for content in contents:
        for category in content['categories']:
            others = [one for one in content['categories'] if one is not category]
            if category['id'] == 0 and any(one.get('supercategory') == category['name'] for one in others):
                used = any(one['category_id'] == 0 for each in contents for one in each.get('annotations', ()))
                return None if used else category['name']
    return None


def _order_categories(
    paths: dict[str, Path], contents: dict[str, dict[str, Any]], group: str | None, classes: Sequence[str] | None
) -> dict[str, int]:
    """Names of the classes in the order of their labels, with the ids of the training file."""
    first = 'train' if 'train' in contents else next(iter(contents))
    ids = {
        one['name']: one['id']
        for one in sorted(contents[first]['categories'], key=lambda one: one['id'])
        if not (one['id'] == 0 and one['name'] == group)
    }
    if not ids:
        raise ValueError(f'{paths[first]} has no categories, so there is no class to learn; name them in it')
    for split, content in contents.items():
        names = {one['id']: one['name'] for one in content['categories']}
        used = {names.get(one['category_id']) for one in content.get('annotations', ())}
        for name in sorted(name for name in used if name is not None and name not in ids):
            raise ValueError(
                f'{paths[split]} has objects of the category {name!r}, which {paths[first]} does not have'
                f'{did_you_mean(name, list(ids))}; give all splits the same categories'
            )
    if classes is None:
        return ids
    check_same_names(classes, list(ids), str(paths[first]))
    return {name: number for number, name in enumerate(classes, start=1)}


def _canonical(content: dict[str, Any], categories: dict[str, int], path: Path) -> dict[str, Any]:
    """The same annotations with images by name, and the categories of the training file."""
    entries = {one['name']: one for one in content['categories']}
    own = {one['id']: one['name'] for one in content['categories']}
    unknown = sorted({one['category_id'] for one in content['annotations'] if own.get(one['category_id']) is None})
    if unknown:
        raise ValueError(f'{path}: objects have the category ids {format_list(unknown)}; add these to its categories')
    images = sorted(content['images'], key=lambda one: (Path(one['file_name']).name, one['file_name']))
    return {
        **content,
        'images': images,
        'annotations': [{**one, 'category_id': categories[own[one['category_id']]]} for one in content['annotations']],
        'categories': [{**entries.get(name, {'name': name}), 'id': number} for name, number in categories.items()],
    }


def _find_image_folder(root: Path, ann_file: Path, names: list[str], split: str) -> Path:
    """The folder that the file names of an annotation file start from."""
    if not names:
        raise ValueError(f'{ann_file} lists no image, so the {split} split is empty; correct or remove it')
    folders = [ann_file.parent, root, *sorted(path for path in root.rglob('*') if path.is_dir())]
    folders.sort(key=lambda folder: (split_of(folder.name) != split, len(folder.parts)))
    sample = names[:: max(len(names) // 10, 1)]
    best = max(folders, key=lambda folder: sum((folder / name).is_file() for name in sample))
    if not any((best / name).is_file() for name in sample):
        raise FileNotFoundError(
            f'no folder in {root} has the images of {ann_file} (looked for {names[0]!r} and others); put them there'
        )
    return best
