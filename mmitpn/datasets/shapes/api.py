"""Making the generated set: parameters, the stamp that says a set is whole, and what to do with a folder in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .layout import FIRST_ID, folders_of, jpeg_of, picture_of, write_split

VERSION = 2
"""Raised whenever a seed gives other pictures or files than before, so that older sets are made again."""
STAMP = 'shapes.json'
"""Written last: a folder with it is whole."""
STARTED = 'shapes.unfinished'
"""Written first, removed last: a folder with it was being made by us."""
SMALLEST_SIDE = 32


def generate_shapes(
    out_dir: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (128, 192),
    overwrite: bool = False,
) -> Path:
    """Make the generated set of shapes before textures, in COCO's and ADE20K's layout.

    A picture depends on the seed, its split and its number alone, on any machine. A whole set is not made again.

    Args:
        out_dir: Folder of the set; ``coco/`` and ``ade/`` are made in it.
        num_train: Number of training pictures, at least 1.
        num_val: Number of held-out pictures, at least 1.
        seed: A whole number from 0.
        size: Shortest and longest side of a picture in pixels, at least 32.
        overwrite: Make the set anew, also where another one is.

    Returns:
        Path: The folder of the set.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds another set or something that is not ours.
        TypeError: If a number is not whole.
    """
    _check_numbers(num_train=num_train, num_val=num_val)
    parameters = {'kind': 'shapes', **_common(seed, size), 'num_train': num_train, 'num_val': num_val}
    splits = {'train': num_train, 'val': num_val}
    files = {folder: n for split, n in splits.items() for folder in folders_of(split).values()}
    root = Path(out_dir)
    if _is_whole(root, parameters, files, overwrite=overwrite):
        return root
    _begin(root, ('coco', 'ade'))
    made = {
        split: write_split(root, split, number, seed=seed, size=(size[0], size[1])) for split, number in splits.items()
    }
    _finish(root, parameters, made)
    return root


def generate_images(
    out_dir: str | Path,
    num_images: int = 1000,
    seed: int = 0,
    size: tuple[int, int] = (128, 192),
    overwrite: bool = False,
) -> Path:
    """Make pictures of the same kind without any label, for pre-training. None of them is in the labelled set.

    Args:
        out_dir: Folder of the set; ``images/`` is made in it.
        num_images: Number of pictures, at least 1.
        seed: A whole number from 0.
        size: Shortest and longest side of a picture in pixels, at least 32.
        overwrite: Make the set anew, also where another one is.

    Returns:
        Path: The folder with the pictures.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds another set or something that is not ours.
        TypeError: If a number is not whole.
    """
    _check_numbers(num_images=num_images)
    parameters = {'kind': 'shapes without labels', **_common(seed, size), 'num_images': num_images}
    root = Path(out_dir)
    images = root / 'images'
    if _is_whole(root, parameters, {'images': num_images}, overwrite=overwrite):
        return images
    _begin(root, ('images',))
    images.mkdir()
    for index in range(num_images):
        picture = picture_of(seed, 'unlabelled', index, (size[0], size[1]))
        (images / f'{FIRST_ID["unlabelled"] + index:012d}.jpg').write_bytes(jpeg_of(picture.image))
    _finish(root, parameters, {'unlabelled': {'pictures': num_images}})
    return images


def read_stamp(root: str | Path) -> dict[str, Any] | None:
    """What a whole set was made with and holds, or None where there is none.

    Args:
        root: Folder of the set.

    Returns:
        dict | None: Keys ``parameters`` and ``made`` (counts by split).
    """
    try:
        stamp = json.loads((Path(root) / STAMP).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return stamp if isinstance(stamp, dict) and {'parameters', 'made'} <= set(stamp) else None


def _common(seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Check seed and size; the stamp's entries for them."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f'seed is a whole number, but got {seed!r}')
    if seed < 0:
        raise ValueError(f'seed must be 0 or more, but got {seed}')
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise TypeError(f'size is the shortest and the longest side as two whole numbers, but got {size!r}')
    if not SMALLEST_SIDE <= size[0] <= size[1]:
        raise ValueError(
            f'size must be (shortest, longest) side with {SMALLEST_SIDE} <= shortest <= longest, got {size}'
        )
    return {'version': VERSION, 'seed': seed, 'size': list(size)}


def _check_numbers(**numbers: int) -> None:
    """Refuse counts of pictures that are not whole numbers from 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f'{name} is a whole number, but got {number!r}')
        if not 1 <= number < 500_000:
            raise ValueError(f'{name} must be from 1 to 499999, but got {number}')


def _is_whole(root: Path, parameters: dict[str, Any], files: dict[str, int], *, overwrite: bool) -> bool:
    """Whether the wanted set is there already.

    Args:
        root: Folder of the set.
        parameters: What the set is made with.
        files: Number of files in each folder of a whole set.
        overwrite: Whether anything of ours may be replaced.

    Raises:
        ValueError: If something else is in the way.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} is a file; give a folder for the generated set')
    stamp = read_stamp(root)
    ours = stamp is not None or (root / STARTED).exists() or (root / STAMP).exists()
    if not ours and root.exists() and any(root.iterdir()):
        raise ValueError(
            f'{root} holds files that are not a generated set (no {STAMP} in it); give a new or empty folder, '
            'so that nothing of yours is replaced'
        )
    if overwrite or stamp is None:
        return False
    if stamp['parameters'] != parameters:
        seen = {key: value for key, value in stamp['parameters'].items() if parameters.get(key) != value}
        wanted = {key: parameters.get(key) for key in seen}
        raise ValueError(
            f'{root} holds a generated set made with {seen}, but {wanted} is wanted; give another folder, '
            'or overwrite=True (--overwrite) to replace it'
        )
    return all(sum(1 for _ in (root / f).glob('*.*')) == n for f, n in files.items())


def _begin(root: Path, folders: tuple[str, ...]) -> None:
    """Mark the folder as being made, and remove what an earlier run left in it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / STARTED).touch()
    (root / STAMP).unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(root / folder, ignore_errors=True)


def _finish(root: Path, parameters: dict[str, Any], made: dict[str, dict[str, int]]) -> None:
    """Write the stamp."""
    partial = root / f'{STAMP}.part'
    partial.write_text(json.dumps({'parameters': parameters, 'made': made}, indent=1) + '\n', encoding='utf-8')
    partial.replace(root / STAMP)
    (root / STARTED).unlink()
