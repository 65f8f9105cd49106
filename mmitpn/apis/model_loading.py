"""From a config and a file of weights to a complete model, its class names and its test pipeline."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.loader import match_weights
from mmitpn.config_check.dataset_entries import find_datasets
from mmitpn.config_check.model import classes_are_prompts, classes_of_meta
from mmitpn.config_types import is_type, type_name
from mmitpn.engine.cli import load_config
from mmitpn.engine.evaluation import load_complete_model, read_authors_file
from mmitpn.engine.pretrained import use_checkpoint_grid
from mmitpn.engine.runtime import setup_environment
from mmitpn.weights import WEIGHTS, find_weights, resolve_weights
from mmitpn.weights.zoo import nearest_names

DERIVED = '.num_batches_tracked'  # a buffer that changes no prediction, and that old files lack
HEADS = ('panoptic_fusion_head', 'roi_head.bbox_head', 'bbox_head', 'query_head', 'mask_head', 'decode_head', 'head')


# --- config and file by name -----------------------------------------------------------------------------------------


def resolve_model(config: str | os.PathLike, weights: str | os.PathLike | None) -> tuple[Config, str]:
    """Find the config and the weights of a model.

    Args:
        config: A config, as of :func:`mmitpn.engine.config_utils.resolve_config`, or the name of a complete model in
            ``mmitpn.weights``, such as ``nano-shapes``.
        weights: A file, an address or a name in ``mmitpn.weights``; None for those of a complete model.

    Returns:
        The config, and the path or address of the weights.

    Raises:
        FileNotFoundError: If there is no such config or file.
        ValueError: If the weights are not given, or are not known by name.
    """
    setup_environment()
    name = os.fspath(config)
    entry = None
    if not Path(name).is_file() and '::' not in name and Path(name).suffix == '':
        entry = _find_complete(name)
    if entry is not None:
        config, weights = entry.config, entry.name if weights is None else weights
    try:
        cfg = load_config(config)
    except FileNotFoundError as error:
        near = [one for one in nearest_names(name) if WEIGHTS[one].config is not None]
        raise FileNotFoundError(f'{error}; did you mean {near[0]!r}?' if near else str(error)) from None
    if weights is None:
        raise ValueError(
            f'the config {name} needs weights: give a checkpoint of the whole model, as training writes it'
            " (--weights FILE; in Python weights='FILE')"
        )
    source = os.fspath(weights)
    refuse_backbone(source, cfg)
    if not Path(source).expanduser().exists():
        source = os.fspath(resolve_weights(source))
        if '://' not in source and not Path(source).expanduser().exists():
            raise FileNotFoundError(
                f'no weights {source!r} (seen from {Path.cwd()}); give the path of a checkpoint, an address, or a name'
                ' (mmitpn weights list shows them)'
            )
    return cfg, source


def refuse_backbone(weights: str, cfg: Config) -> None:
    """Raise, before it is downloaded, for a name of pre-trained weights and the config of a detector or segmentor.

    Args:
        weights: A file, an address or a name in ``mmitpn.weights``, for the whole model.
        cfg: The config of the model.

    Raises:
        ValueError: If the name is that of a backbone's weights.
    """
    name = weights.removeprefix('mmitpn://')
    is_backbone = name in WEIGHTS and WEIGHTS[name].config is None and not Path(weights).exists()
    if is_backbone and cfg.get('default_scope') in ('mmdet', 'mmseg'):
        raise ValueError(
            f'{weights} names pre-trained weights of a backbone, without a head: train this config from them'
            f' (mmitpn train CONFIG --pretrained {name}), and give the checkpoint of that run'
        )


def _find_complete(name: str) -> Any:
    """The entry of a complete model in ``mmitpn.weights``; None for any other name."""
    try:
        entry = find_weights(name)
    except ValueError:
        return None
    if entry.config is None:
        raise ValueError(
            f'{name!r} names pre-trained weights of a backbone, not a complete model; give the config of a model that'
            ' you trained, with its checkpoint as weights'
        )
    return entry


# --- the model -------------------------------------------------------------------------------------------------------


def build_model(cfg: Config, weights: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the model of a config with all weights from one file.

    No other file is read: ``init_cfg`` and ``pretrained`` of the parts of the model are removed from the config.

    Args:
        cfg: Config of a detector, segmentor or classifier; changed in place.
        weights: File, address, or sharded checkpoint (a folder): one of mmengine, a released one of MaskDINO, or a
            fine-tuned one of the iTPN authors.

    Returns:
        The model on the CPU, in evaluation mode, and the names of its classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, lacks weights of the model or has them in another shape, or the number of
            class names is not that of the head.
    """
    if cfg.get('model') is None:
        raise ValueError(
            f'the config {cfg.filename} has no model; give the config of a detector, segmentor, classifier'
        )
    if classes_are_prompts(cfg.model):
        raise ValueError('the classes of this model are words of a prompt, which Predictor does not take')
    remove_other_files(cfg.model)
    use_checkpoint_grid(cfg, weights)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as mmengine's runner does
    # Some frameworks print about optional packages when they are imported, which is here.
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')), redirect_stdout(StringIO()):
        model = MODELS.build(cfg.model)
    authors = None if Path(weights).is_dir() else read_authors_file(weights)
    if authors is not None:
        try:
            load_complete_model(model, authors, weights, advice='')
        except TypeError as error:  # a model without a backbone or neck of mmitpn
            raise ValueError(f'{weights}: {error}; give a checkpoint of the whole model') from None
        meta = None
    else:
        content = read_checkpoint(weights, allow_objects=True)  # objects as inert stand-ins
        meta = content.get('meta')
        _load_all(model, content, weights)
    return model.eval(), _class_names(cfg, model, meta, weights)


def remove_other_files(node: Any) -> None:
    """Remove what would make parts of a model read or download weights of their own."""
    if isinstance(node, Mapping):
        if node.get('pretrained'):
            node['pretrained'] = False if node['pretrained'] is True else None
        several = node.get('init_cfg')
        for one in several if isinstance(several, (list, tuple)) else [several]:
            if is_type(one, 'Pretrained', 'PretrainedInit'):
                node['init_cfg'] = None
        for value in node.values():
            remove_other_files(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            remove_other_files(value)


def _load_all(model: nn.Module, content: Mapping[str, Any], weights: str) -> None:
    """Load a state dict, and raise unless every parameter and buffer of the model comes from it."""
    stored = content.get('state_dict', content)
    state = {str(key).removeprefix('module.'): value for key, value in stored.items() if isinstance(value, Tensor)}
    own = dict(model.state_dict())
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys  # modules may rename and resize
    except RuntimeError:  # other shapes
        missing = match_weights(own, state, model).missing
    missing = [key for key in missing if not key.endswith(DERIVED)]
    if not missing:
        return
    reshaped = [key for key in missing if key in state]
    examples = '; '.join(f'{key} is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model'
                         for key in reshaped[:2])  # fmt: skip
    parts = ', '.join(f'{part} ({n})' for part, n in Counter(key.partition('.')[0] for key in missing).most_common())
    advice = (
        'give the config that the file was trained with'
        if reshaped
        else 'they would be random: give a checkpoint of the whole model'
    )
    raise ValueError(
        f'{weights} has {len(own) - len(missing)} of the {len(own)} weights of the model; the others are missing'
        f' or have another shape, in {parts}{f": {examples}" if examples else ""}; {advice}'
    )


# --- class names and outputs -----------------------------------------------------------------------------------------


def _class_names(cfg: Config, model: nn.Module, meta: Any, weights: str) -> tuple[str, ...]:
    """Names from the file, else from the test dataset of the config."""
    names, source = classes_of_meta(meta), weights
    if names is None:
        source = 'the test dataset of the config'
        names = next((one.classes for one in find_datasets(cfg, ('test', 'val')) if one.classes is not None), None)
    number = count_classes(model)
    if names is None:
        raise ValueError(
            f'neither {weights} nor the test dataset of the config names the classes; add metainfo=dict(classes=(...))'
            f' with {number} names to test_dataloader.dataset'
        )
    if number is not None and len(names) < number:
        raise ValueError(
            f'{source} names {len(names)} classes, but the head of the model has {number}: the checkpoint and the'
            ' config do not belong together, or metainfo.classes of test_dataloader.dataset is incomplete'
        )
    return tuple(names)


def count_classes(model: nn.Module) -> int | None:
    """The number of classes of a built model; None where its head does not tell."""
    for path in HEADS:
        part: Any = model
        for key in path.split('.'):
            part = getattr(part, key, None)
            part = part[-1] if isinstance(part, nn.ModuleList) and len(part) else part  # of a cascade
        number = getattr(part, 'num_classes', None)
        if isinstance(number, int):
            return number
    return None


def find_outputs(model: nn.Module) -> tuple[str, ...]:
    """Which of boxes, masks, panoptic, semantic and probabilities a model gives.

    Raises:
        ValueError: If it is neither a detector of mmdet, a segmentor of mmseg nor a classifier of mmpretrain.
    """
    bases = {cls.__name__ for cls in type(model).__mro__}
    if 'BaseSegmentor' in bases:
        return ('semantic',)
    if 'BaseClassifier' in bases:
        return ('probabilities',)
    if 'BaseDetector' not in bases:
        raise ValueError(
            f'{type(model).__name__} is not a detector of mmdet, segmentor of mmseg or classifier of mmpretrain'
        )
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is None:
        in_box_head = hasattr(getattr(model, 'bbox_head', None), 'mask_head')  # as of RTMDet-Ins
        return ('boxes', 'masks') if model.with_mask or in_box_head else ('boxes',)
    test_cfg = getattr(fusion, 'test_cfg', None) or {}
    switches = (('instance_on', False, ('boxes', 'masks')), ('panoptic_on', True, ('panoptic',)))
    switches += (('semantic_on', False, ('semantic',)),)
    return tuple(name for key, default, names in switches if test_cfg.get(key, default) for name in names)


# --- test pipeline ---------------------------------------------------------------------------------------------------


def find_pipeline(cfg: Config) -> list[dict[str, Any]]:
    """The transforms of a config's test data, without those that load annotations.

    Raises:
        ValueError: If the config has no test data, or its pipeline does not start by loading an image.
    """
    found = [one.cfg['pipeline'] for one in find_datasets(cfg, ('test', 'val')) if one.cfg.get('pipeline')]
    steps = [deepcopy(step) for step in (found[0] if found else cfg.get('test_pipeline') or [])]
    steps = [step for step in steps if 'Annotation' not in type_name(step)]
    if not steps or not type_name(steps[0]).startswith('LoadImage'):
        raise ValueError(
            f'the config has no test pipeline that loads an image: test_dataloader.dataset.pipeline starts with'
            f' {type_name(steps[0]) if steps else "nothing"!r}, and LoadImageFromFile is needed'
        )
    return steps
