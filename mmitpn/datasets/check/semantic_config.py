"""The semantic data sets of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS, DefaultScope

from .data_sets import DataSet, find_data_sets
from .semantic import SemanticSummary, check_semantic


def is_semantic(data_set: DataSet) -> bool:
    """Whether it is one of mmseg's data sets of pictures with label maps."""
    return data_set.cls is not None and any(base.__name__ == 'BaseSegDataset' for base in data_set.cls.__mro__)


def reads_plain_maps(data_set: DataSet) -> bool:
    """Whether its maps are read as they are: neither another reader nor a transform of its own may change them."""
    steps = [step.get('type') for step in data_set.cfg.get('pipeline') or () if isinstance(step, Mapping)]
    return 'LoadAnnotations' in steps and 'LoadImageFromFile' in steps


def check_semantic_config(
    cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = ('train', 'val'),
    sample: int | None = None,
    progress: Callable[[Sequence[int], str], Iterable[int]] | None = None,
) -> list[SemanticSummary]:
    """Open pictures and label maps of a config's semantic data sets.

    Args:
        cfg: An mmengine ``Config``.
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        sample: How many pictures of each, evenly spaced; None looks at all.
        progress: Wraps the indices to go through and a name, to show progress.

    Returns:
        One summary for each data set; broken files are in them.

    Raises:
        ValueError: If the config has no such data set, or one without pictures.
    """
    found = [data_set for data_set in find_data_sets(cfg, splits) if is_semantic(data_set)]
    if not found:
        raise ValueError(
            f"the config's {' and '.join(splits)} dataloaders hold no semantic data set (of mmseg); "
            'for boxes and masks see tools/data/check_coco.py'
        )
    scope = cfg.get('default_scope', 'mmseg')
    return [look_at_maps(data_set, scope=scope, sample=sample, progress=progress) for data_set in found]


def look_at_maps(
    data_set: DataSet,
    *,
    scope: str = 'mmseg',
    sample: int | None = None,
    progress: Callable[[Sequence[int], str], Iterable[int]] | None = None,
) -> SemanticSummary:
    """Open pictures and label maps of one semantic data set; the arguments are those of `check_semantic_config`.

    Raises:
        ValueError: If it has no pictures.
    """
    settings = {key: value for key, value in data_set.cfg.items() if key not in ('pipeline', 'indices')}
    with DefaultScope.overwrite_default_scope(scope):
        built = DATASETS.build({**settings, 'pipeline': [], 'serialize_data': False})
    pairs = [(info['img_path'], info.get('seg_map_path')) for info in built.data_list]
    if not pairs:
        raise ValueError(f'{data_set.where}: no picture found; correct data_root, data_prefix or img_suffix')
    number = len(pairs) if sample is None else min(sample, len(pairs))
    chosen = [index * len(pairs) // number for index in range(number)]
    return check_semantic(
        data_set.where,
        pairs,
        built.metainfo['classes'],
        reduce_zero_label=bool(built.reduce_zero_label),
        label_map=built.label_map,
        progress=progress(chosen, data_set.where) if progress else chosen,
    )
