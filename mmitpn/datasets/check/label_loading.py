"""Label maps as the pipeline of a semantic dataset loads them: its own transforms are called, not imitated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_types import type_name

from .image_size import ImageLoader, build_image_loader

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
    steps = list(_flatten(pipeline or ()))
    if not steps and default:
        steps = [{'type': 'mmseg.LoadAnnotations'}]
    with DefaultScope.overwrite_default_scope(scope):
        if not any(map(_loads_labels, steps)):
            return None
        chosen = [step for step in steps if _loads_labels(step) or _is_own(step)]
        transforms = [TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in chosen]
    return LabelLoader(transforms, build_image_loader(steps, scope=scope))


def _flatten(pipeline: Any) -> Iterator[Any]:
    """The transforms of a pipeline and those inside them (``TestTimeAug``, ``RandomChoice`` ...)."""
    if isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from _flatten(step)
    elif isinstance(pipeline, Mapping) and pipeline.get('transforms'):
        yield from _flatten(pipeline['transforms'])
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
