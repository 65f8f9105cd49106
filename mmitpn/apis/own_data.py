"""Training on a user's own data: a config is changed to a dataset that was found in a folder."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmitpn.atomic import write_atomic
from mmitpn.config_check.dataset_entries import SPLITS, find_datasets
from mmitpn.config_check.messages import numbered
from mmitpn.config_check.model import HEADS, NUMBERS, OTHER_CLASSES, classes_are_prompts
from mmitpn.config_types import is_type, type_name
from mmitpn.engine.schedule import set_batch, set_length

from .data_layouts import OwnData
from .instance_layouts import InstanceSplit
from .label_map_layouts import LabelMapSplit

# Names that configs set on the way to what they build, and that would be left with the paths and classes of old.
STEPS_ON_THE_WAY = (
    *('dataset_type', 'data_root', 'metainfo', 'classes', 'palette', 'num_classes', 'backend_args', 'file_client_args'),
    *('train_pipeline', 'test_pipeline', 'val_pipeline', 'augmentations', 'short_sides', 'meta_keys', 'load_pipeline'),
    *('channels', 'head_channels', 'width', 'pretrained', 'norm_cfg', 'image_size', 'crop_size', 'no_decay'),
    *('max_iters', 'max_epochs', 'warmup', 'flat_until', 'warmup_lr', 'cosine_lr', 'step_lr', 'num_things_classes'),
    *('num_stuff_classes', 'dataset_train', 'dataset_aug', 'interval', 'dynamic_intervals'),
)
OF_THE_RUN = ('work_dir', 'launcher', 'resume')  # what the next run decides


@dataclass(frozen=True)
class RunOptions:
    """How long a run on own data is, and with which batch.

    Attributes:
        batch: Images per process; None keeps the config's.
        epochs: Number of epochs; None keeps the length of the config.
        scale_lr: Whether the learning rate follows the batch.
    """

    batch: int | None = None
    epochs: int | None = None
    scale_lr: bool = True


def task_of(cfg: Config) -> str:
    """Which data a config learns from: ``instances`` or ``semantic``.

    Raises:
        ValueError: If it is panoptic, a classifier, or another kind.
    """
    scope = cfg.get('default_scope')
    found = find_datasets(cfg, ('train',))
    if any(one.kind == 'CocoPanopticDataset' for one in found):
        raise ValueError(
            '--data has no layout for panoptic segmentation, which this config is for; use an instance segmentation '
            'config (mask-dino_..._coco-instance), or set the paths of your panoptic files by --cfg-options'
        )
    if scope == 'mmpretrain':
        raise ValueError(
            '--data is for detection and segmentation; a classifier takes a folder for each class: docs/own_data.md, '
            '"Classification", has the options'
        )
    if scope not in ('mmdet', 'mmseg') or not found:
        raise ValueError(
            f'--data needs a config of mmdet or mmseg with a train_dataloader, but this one has default_scope={scope!r}'
            f' and {len(found)} training datasets'
        )
    return 'semantic' if scope == 'mmseg' else 'instances'


def use_own_data(cfg: Config, data: OwnData, options: RunOptions | None = None) -> list[str]:
    """Change a config of mmdet or mmseg to train, validate and test on other data.

    Paths and classes of all datasets, also inside wrappers, the metrics, the number of classes of all heads, the
    learning rate, and the lengths and intervals of the schedule are set. The changes are also kept in
    ``cfg.own_data``.

    Args:
        cfg: The config; changed in place.
        data: The dataset with its files (:func:`mmitpn.apis.data_layouts.write_own_data`) and a validation split.
        options: Batch and length of the run.

    Returns:
        The changes, a line each.

    Raises:
        ValueError: If the config is for another kind of data, learns masks and the data have none, or has settings that
            cannot follow the classes.
    """
    options = options or RunOptions()
    task = task_of(cfg)
    if task != data.task:
        raise ValueError(f'the config is for {task} data, but {data.root} has {data.task} data ({data.layout})')
    if task == 'instances' and learns_masks(cfg) and not data.has_masks:
        raise ValueError(
            f'the config learns masks, but {data.root} has boxes only ({data.layout}, '
            f'{data.splits["train"].num_objects} objects without a mask); use a box config, as dino-4scale_fast-itpn-b_'
            '8xb2-12e_coco, or annotate polygons'
        )
    lines = _set_datasets(cfg, data)
    lines += _set_evaluators(cfg, data)
    if classes_are_prompts(cfg.model):
        lines.append('classes: words of the prompt, so that the heads keep their size')
    else:
        lines += [line for line in set_num_classes(cfg.model, len(data.classes)) if _says_a_change(line)]
    lines += set_batch(cfg, options.batch, scale_lr=options.scale_lr)
    lines += set_length(cfg, _images_of_epoch(cfg, data), options.epochs)
    lines += _save_best(cfg, task)
    for name in STEPS_ON_THE_WAY:
        cfg.pop(name, None)
    cfg.own_data = {
        'folder': str(data.root),
        'layout': data.layout,
        'classes': list(data.classes),
        'notes': list(data.notes),
        'changes': lines,
    }
    return lines


# --- datasets --------------------------------------------------------------------------------------------------------


def _set_datasets(cfg: Config, data: OwnData) -> list[str]:
    """Set the innermost datasets of the three loaders; a list of several is replaced by one."""
    lines = []
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if not isinstance(loader, Mapping):
            continue
        used = split if split in data.splits else 'val'
        holder, where = loader, f'{split}_dataloader'
        while True:
            inner = holder['dataset']
            if isinstance(inner.get('datasets'), (list, tuple)):
                lines.append(f'{where}.dataset: {type_name(inner)} of {len(inner["datasets"])} -> the first of them')
                holder['dataset'] = inner['datasets'][0]
            elif isinstance(inner.get('dataset'), Mapping):
                holder, where = inner, f'{where}.dataset'
            else:
                break
        old = type_name(holder['dataset'])
        holder['dataset'] = _dataset(holder['dataset'], data, used, cfg)
        text = f'{where}.dataset: {old} -> {type_name(holder["dataset"])} of the {used} split'
        lines.append(f'{text}, {data.splits[used].num_images} images')
    return lines


def _dataset(old: ConfigDict, data: OwnData, split: str, cfg: Config) -> ConfigDict:
    """A dataset of another split, with pipeline and filters of the old one."""
    kept = {key: old[key] for key in ('pipeline', 'filter_cfg', 'test_mode', 'max_refetch', 'indices') if key in old}
    metainfo = {'classes': tuple(data.classes), 'palette': list(data.palette or distinct_colors(len(data.classes)))}
    files = data.splits[split]
    if isinstance(files, InstanceSplit):
        if files.ann_file is None:
            raise ValueError(f'the annotations of the {split} split are not written; call write_own_data first')
        paths = {'data_root': f'{data.root}/', 'ann_file': str(files.ann_file), 'data_prefix': {'img': ''}}
        paths['data_prefix']['img'] = '' if files.images == data.root else str(files.images)
        if files.ann_file.is_relative_to(data.root):
            paths['ann_file'] = files.ann_file.relative_to(data.root).as_posix()
        if files.images.is_relative_to(data.root) and files.images != data.root:
            paths['data_prefix']['img'] = f'{files.images.relative_to(data.root).as_posix()}/'
        return ConfigDict(type='mmdet.CocoDataset', **paths, metainfo=metainfo, **kept)
    _forget_zero_label(kept.get('pipeline'))
    paths = _label_map_paths(files, data, split, Path(cfg.work_dir))
    return ConfigDict(type='mmseg.BaseSegDataset', **paths, metainfo=metainfo, **kept)


def _label_map_paths(files: LabelMapSplit, data: OwnData, split: str, work_dir: Path) -> dict[str, Any]:
    """The paths of a dataset of images with label maps."""

    def below(path: Path) -> str:
        return path.relative_to(data.root).as_posix() if path.is_relative_to(data.root) else str(path)

    listed = {} if files.is_folder else {'ann_file': str((work_dir / 'data' / f'{split}.txt').resolve())}
    return {
        'data_root': str(data.root),
        'data_prefix': {'img_path': below(files.images), 'seg_map_path': below(files.maps)},
        **listed,
        'img_suffix': files.image_suffix,
        'seg_map_suffix': files.map_suffix,
        'reduce_zero_label': data.reduce_zero_label,
    }


def _forget_zero_label(pipeline: Any) -> None:
    """Take reduce_zero_label out of a pipeline: the dataset decides."""
    for step in pipeline or ():
        if isinstance(step, dict) and is_type(step, 'LoadAnnotations'):
            step.pop('reduce_zero_label', None)


def _images_of_epoch(cfg: Config, data: OwnData) -> int:
    """Images that the training loader goes through, with repetitions, without those that are filtered out."""
    train = data.splits['train']
    times, dataset = 1, cfg.train_dataloader.dataset
    while isinstance(dataset.get('dataset'), Mapping):
        times *= dataset.get('times', 1)
        dataset = dataset['dataset']
    filtered = isinstance(train, InstanceSplit) and (dataset.get('filter_cfg') or {}).get('filter_empty_gt')
    return times * (train.num_images_with_objects if filtered else train.num_images)


def learns_masks(cfg: Config) -> bool:
    """Whether the training pipeline of a config loads masks."""

    def steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
        for step in pipeline if isinstance(pipeline, (list, tuple)) else ():
            if isinstance(step, Mapping):
                yield step
                yield from steps(step.get('transforms'))
            else:
                yield from steps(step)

    holder = cfg.train_dataloader
    while isinstance(holder.get('dataset'), Mapping):
        holder = holder['dataset']
        if any(is_type(step, 'LoadAnnotations') and step.get('with_mask') for step in steps(holder.get('pipeline'))):
            return True
    return False


def distinct_colors(number: int) -> list[tuple[int, int, int]]:
    """Colors for classes: hues by the golden ratio, so that neighbors differ.

    Args:
        number: How many.

    Returns:
        RGB, 0 to 255 each.
    """
    hues = [index * 0.618034 % 1 for index in range(number)]
    colors = [colorsys.hsv_to_rgb(hue, 0.75, 0.95 - 0.3 * (index % 2)) for index, hue in enumerate(hues)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors]


# --- metrics and heads -----------------------------------------------------------------------------------------------


def _set_evaluators(cfg: Config, data: OwnData) -> list[str]:
    """Set the metrics: COCO's for boxes and masks, mean IoU for label maps."""
    lines = []
    for split in ('val', 'test'):
        key = f'{split}_evaluator'
        if cfg.get(key) is None:
            continue
        old = [one for _, one in numbered(cfg[key], key)]
        if data.task == 'semantic':
            kept = next((dict(one) for one in old if is_type(one, 'IoUMetric')), {'type': 'IoUMetric'})
            new = {**kept, 'iou_metrics': kept.get('iou_metrics', ['mIoU']), 'format_only': False}
        else:
            kept = next((dict(one) for one in old if is_type(one, 'CocoMetric')), {})
            metric = kept.get('metric', ['bbox', 'segm'] if learns_masks(cfg) else 'bbox')
            used = data.splits[split if split in data.splits else 'val']
            new = {**kept, 'type': 'CocoMetric', 'ann_file': str(used.ann_file), 'metric': metric, 'format_only': False}
        if [type_name(one) for one in old] != [type_name(new)]:
            lines.append(f'{key}: {", ".join(map(type_name, old))} -> {type_name(new)}')
        cfg[key] = ConfigDict(new)
    return lines


def _says_a_change(line: str) -> bool:
    before, _, after = line.rpartition(': ')[2].partition(' -> ')
    return before != after


def set_num_classes(model: Mapping[str, Any], number: int) -> list[str]:
    """Set the number of classes in all heads of a model.

    Args:
        model: The config's model; changed in place.
        number: Number of classes.

    Returns:
        The changes, a line each.

    Raises:
        ValueError: If no head has a number of classes.
    """
    lines: list[str] = []
    for key in HEADS:
        lines += _set_of_head(model.get(key), f'model.{key}', number)
    if not lines:
        raise ValueError(
            f'no head of the model has a number of classes ({", ".join(model)}); set the classes of this model by '
            '--cfg-options'
        )
    return lines


def _set_of_head(part: Any, where: str, number: int) -> list[str]:
    """Set the number of classes in a head and the heads inside it."""
    if isinstance(part, (list, tuple)):
        return [line for index, one in enumerate(part) for line in _set_of_head(one, f'{where}[{index}]', number)]
    if not isinstance(part, Mapping) or is_type(part, *OTHER_CLASSES):
        return []
    given = {name: part[name] for name in NUMBERS if isinstance(part.get(name), int)}
    new = {name: 0 if name == 'num_stuff_classes' else number for name in given}
    lines = [
        f'{where}.{name}: {old} -> {new[name]}' for name, old in given.items() if name != 'num_stuff_classes' or old
    ]
    if given:
        before = given.get('num_classes', given.get('num_things_classes', 0) + given.get('num_stuff_classes', 0))
        if part.get('out_channels') == before and 'num_classes' in given:
            part['out_channels'] = number
        lines += _set_class_weights(part, where, before, number)
        part.update(new)
    for key, inner in part.items():
        if (key.endswith('_head')) and key not in OTHER_CLASSES:
            lines += _set_of_head(inner, f'{where}.{key}', number)
    return lines


def _set_class_weights(head: Mapping[str, Any], where: str, before: int, number: int) -> list[str]:
    """Lists of weights, one for each class and maybe one for 'no object', get the new length; other weights go."""
    lines = []
    for key, loss in head.items():
        for name, one in numbered(loss, f'{where}.{key}') if key.startswith('loss') else ():
            weights = one.get('class_weight')
            if not isinstance(weights, (list, tuple)):
                continue
            of_classes, rest = weights[:before], list(weights[before:])
            one['class_weight'] = [of_classes[0] if len(set(of_classes)) == 1 else 1.0] * number + rest
            if len(set(of_classes)) > 1:
                lines.append(f'{name}.class_weight: weights of {before} other classes -> 1.0 for each')
    return lines


def _save_best(cfg: Config, task: str) -> list[str]:
    """Keep the best checkpoint, by the metric of the validation set."""
    saving = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not isinstance(saving, Mapping) or saving.get('save_best'):
        return []
    metric = 'mIoU'
    if task == 'instances':
        metrics = cfg.val_evaluator.get('metric', 'bbox')
        metrics = [metrics] if isinstance(metrics, str) else metrics
        metric = f'coco/{"segm" if "segm" in metrics else "bbox"}_mAP'
    saving['save_best'], saving['rule'] = metric, 'greater'
    return [f'checkpoints: the best by {metric} is kept, beside the last']


# --- the resolved config ---------------------------------------------------------------------------------------------


def write_resolved_config(cfg: Config, path: str | Path) -> Path:
    """Write a config that needs no other file, and trains and tests again alone.

    Args:
        cfg: Config that :func:`use_own_data` changed.
        path: File ending in .py.

    Returns:
        The file.
    """
    plain = Config({key: value for key, value in cfg.to_dict().items() if key not in OF_THE_RUN})
    header = (
        '# Written by `mmitpn train CONFIG --data DIR`; it needs no other config, and trains and tests again alone:\n'
        f'#   mmitpn train {Path(path).name}    mmitpn test {Path(path).name} CHECKPOINT\n'
    )
    write_atomic(path, (header + plain.pretty_text).encode())
    return Path(path)
