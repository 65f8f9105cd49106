"""What an exported file says about itself: task, classes, preprocessing, post-processing, version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmitpn.version import __version__

KEY = 'mmitpn'  # of the metadata in ONNX (metadata_props) and OpenVINO (rt_info)
SCHEMA = 1  # raised when a file of this version cannot be read by an older one
TASKS = ('detection', 'queries', 'segmentation', 'query_segmentation', 'classification', 'features')
PRECISIONS = ('fp32', 'fp16', 'int8')


@dataclass(frozen=True)
class ExportInfo:
    """The metadata of an exported file.

    Attributes:
        task: One of ``TASKS``. ``queries`` is MaskDINO in mmdet, whose queries become instances, segments and label
            maps; ``query_segmentation`` its decode head in mmseg.
        outputs: What a :class:`mmitpn.Result` of it has: some of boxes, masks, panoptic, semantic, probabilities.
        classes: Names of the classes.
        mean: Of the channels, subtracted from pixel values.
        std: The channels are divided by it.
        to_rgb: Whether images, read as BGR, are turned into RGB.
        steps: The size rule: the test pipeline's changes of size, in order, see :mod:`mmitpn.deploy.preprocessing`.
        size: Height and width of every input; None: any.
        batch: Number of images of every input; None: any.
        divisor: Inputs of any size are padded to multiples of it, at the right and bottom.
        least: Smallest height and width of inputs of any size.
        settings: Of the post-processing of the task: thresholds, number of thing classes, sliding windows.
        precision: One of ``PRECISIONS``.
        model: Name of the config.
        calibration: Of int8, how it was quantized.
        version: Version of mmitpn that wrote the file.
        schema: Version of this table.
    """

    task: str
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_rgb: bool
    steps: tuple[Mapping[str, Any], ...]
    size: tuple[int, int] | None
    batch: int | None
    divisor: int
    least: int
    settings: Mapping[str, Any]
    precision: str = 'fp32'
    model: str = ''
    calibration: Mapping[str, Any] | None = None
    version: str = __version__
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The metadata as text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None, path: Any) -> ExportInfo:
        """Read the metadata of a file.

        Args:
            text: The text; None if the file has none.
            path: The file, for messages.

        Raises:
            ValueError: If the file was not written by mmitpn, or by a newer version.
        """
        advice = 'export the model by mmitpn export'
        if not text:
            raise ValueError(f'{path} has no metadata of mmitpn (preprocessing, classes): {advice}')
        try:
            values = json.loads(text)
            schema, version = int(values['schema']), str(values['version'])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{path}: the metadata of mmitpn cannot be read ({error!r}): {advice}') from None
        if schema > SCHEMA:
            raise ValueError(
                f'{path} was written by mmitpn {version}, which is newer than the installed {__version__}: install'
                f' mmitpn {version}, or export the model again'
            )
        missing = {one.name for one in fields(cls)} - set(values)
        if missing or values.get('task') not in TASKS:
            raise ValueError(
                f'{path}: the metadata of mmitpn is damaged (task {values.get("task")!r}, without'
                f' {", ".join(sorted(missing)) or "nothing"}): {advice}'
            )
        known = {one.name: values[one.name] for one in fields(cls)}
        for name in ('outputs', 'classes', 'mean', 'std', 'steps', 'size'):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(**known)
