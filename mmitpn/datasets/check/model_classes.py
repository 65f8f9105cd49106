"""Whether a model that is evaluated was trained on the classes of the dataset it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .wording import as_tuple, listing


def classes_of_meta(meta: Any) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint's model was trained on.

    mmengine stores the ``metainfo`` of the training dataset as ``meta['dataset_meta']``; versions 2 of mmdet and 0 of
    mmseg and mmpretrain stored ``meta['CLASSES']``.

    Args:
        meta: What the checkpoint holds under ``meta``.

    Returns:
        The names by index, or None where the checkpoint does not tell.
    """
    for holder in (meta.get('dataset_meta') if isinstance(meta, Mapping) else None, meta):
        if not isinstance(holder, Mapping):
            continue
        names = holder.get('classes', holder.get('CLASSES'))
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def compare_classes(model: Sequence[str], dataset: Sequence[str], *, checkpoint: str, where: str) -> str | None:
    """Compare the classes of a model with those of a dataset, whatever their case.

    Labels are indices: with the same names in another order, class 0 of the model would be compared with another
    class, as with other names.

    Args:
        model: Names that the model was trained on, by index.
        dataset: Names of the dataset, by index.
        checkpoint: The model's file, for the message.
        where: Place of the dataset in the config, for the message.

    Returns:
        What differs, as a sentence without its end; None where nothing does.
    """
    ours, theirs = [name.lower() for name in model], [name.lower() for name in dataset]
    if ours == theirs:
        return None
    if set(ours) == set(theirs) and len(ours) == len(theirs):
        index = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        order = as_tuple(model) if len(model) <= 20 else "the checkpoint's order"
        return (
            f'{where} has the classes of {checkpoint} in another order (index {index} is {dataset[index]!r} there and '
            f'{model[index]!r} in the model), so that labels would be compared with other ones; use the order {order} '
            'in the dataset: its metainfo.classes, and its categories or labels'
        )
    only_model = [name for name, low in zip(model, ours, strict=True) if low not in theirs]
    only_dataset = [name for name, low in zip(dataset, theirs, strict=True) if low not in ours]
    differences = [
        f'{listing(names, limit=5)} only in the {side}'
        for names, side in ((only_model, 'checkpoint'), (only_dataset, 'dataset'))
        if names
    ]
    return (
        f'{checkpoint} was trained on {_count(model)}, but {where} has {_count(dataset)}'
        f'{": " if differences else ""}{", ".join(differences)}; evaluate it on data with its classes: set data_root '
        f'and metainfo.classes of {where}, and the annotation file of test_evaluator, as for its training'
    )


def _count(names: Sequence[str]) -> str:
    """How many classes, and the first names."""
    return f'{len(names)} class{"" if len(names) == 1 else "es"} ({listing(names, limit=5)})'
