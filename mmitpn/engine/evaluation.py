"""Evaluation of a checkpoint: the checks before it, a runner that needs test data only, and the weights."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmitpn.checkpoint import identify, load_pretrained, read_checkpoint
from mmitpn.checkpoint.formats import AUTHORS
from mmitpn.checkpoint.mask_dino_keys import is_mask_dino, load_mask_dino_checkpoint
from mmitpn.engine.checkpointing import read_without_tensors
from mmitpn.engine.cli import FirstStepHook, build_runner
from mmitpn.engine.pretrained import remove_lost_init_cfg
from mmitpn.weights.download import SCHEMES

ALLOW_OTHER_CLASSES = '--allow-other-classes'
READABLE = ('http', 'https', 'file', *SCHEMES)  # schemes; mmengine knows more
# mmengine's runner wants all or none of each.
GROUPS = (('train_dataloader', 'train_cfg', 'optim_wrapper'), ('val_dataloader', 'val_cfg', 'val_evaluator'))


class NoTraining(BaseLoop):
    """Placeholder for the training loop of a runner that only evaluates.

    mmengine builds the training loop, and so reads the training dataset, when anything asks for it or for the number of
    steps: hooks of the config do, such as ``EarlyStoppingHook``, and ``runner.iter``.
    """

    epoch = iter = max_epochs = max_iters = 0
    stop_training = False

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, None)

    def run(self) -> None:
        """Nothing is trained."""
        raise RuntimeError('this runner was built for an evaluation; build another to train')


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that evaluating tools share."""
    parser.add_argument(
        ALLOW_OTHER_CLASSES,
        action='store_true',
        help="evaluate although the names or the order of the checkpoint's classes are not those of the dataset:"
        ' class i of the model is compared with class i of the dataset',
    )


def read_classes(checkpoint: str) -> tuple[str, ...] | None:
    """The names of the classes that the model of a checkpoint was trained on.

    Args:
        checkpoint: File, address, or sharded checkpoint (a folder).

    Returns:
        The names by index; None where the checkpoint has none, and for addresses that only mmengine reads
        (``s3://`` ...).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; the message names what the file is.
    """
    from mmitpn.config_check.model import classes_of_meta

    scheme, separator, _ = checkpoint.partition('://')
    if separator and scheme not in READABLE:
        return None
    content = (
        read_checkpoint(checkpoint, allow_objects=True, mmap=True) if separator else read_without_tensors(checkpoint)
    )
    return classes_of_meta(content.get('meta'))


def check_evaluation(
    cfg: Config, checkpoint: str, classes: Sequence[str] | None, *, allow_other_classes: bool = False
) -> None:
    """Check the test data of a config, and that the model has its classes.

    Args:
        cfg: Config of the model.
        checkpoint: Its file, for messages.
        classes: Names of the classes it was trained on; None compares none.
        allow_other_classes: Only warn where the classes differ.

    Raises:
        ValueError: If the config has no test data, something in it does not fit together, or the classes differ.
        FileNotFoundError: If a file or a folder is not there.
        TypeError: If a setting is of the wrong type.
    """
    from mmitpn.config_check import check_config
    from mmitpn.config_check.dataset_entries import find_datasets
    from mmitpn.config_check.model import classes_are_prompts

    missing = [name for name in ('test_dataloader', 'test_evaluator', 'test_cfg') if cfg.get(name) is None]
    if missing:
        raise ValueError(
            f'the config has no {" and no ".join(missing)}; to evaluate it needs test_dataloader, test_evaluator and'
            ' test_cfg'
        )
    if not classes_are_prompts(cfg.model):
        for one in find_datasets(cfg, ('test',)):
            _compare(classes, one.classes, checkpoint, one.where, allow_other_classes)
    for summary in check_config(cfg, splits=('test',), allow_other_classes=allow_other_classes):
        for text in summary.warnings:
            print_log(f'{summary.path}: {text}', 'current', level=logging.WARNING)


def build_test_runner(
    cfg: Config, checkpoint: str, classes: Sequence[str] | None, *, allow_other_classes: bool = False
) -> tuple[Runner, FirstStepHook]:
    """Build a runner that evaluates, and needs neither training nor validation data.

    Args:
        cfg: Config that :func:`check_evaluation` accepted; incomplete parts for training are removed from it.
        checkpoint: File of the model, for messages.
        classes: Names of the classes it was trained on. They are compared here where the config does not have those
            of the dataset, as of a folder of folders.
        allow_other_classes: Only warn where the classes differ.

    Returns:
        The runner, and a hook whose ``done`` is true after the first step.

    Raises:
        ValueError: If the classes differ.
    """
    from mmitpn.config_check.dataset_entries import find_datasets
    from mmitpn.config_check.model import classes_are_prompts

    unknown = any(one.classes is None for one in find_datasets(cfg, ('test',))) and not classes_are_prompts(cfg.model)
    for group in GROUPS:
        given = [name for name in group if cfg.get(name) is not None]
        if given and len(given) < len(group):
            print_log(f'the config lacks some of {", ".join(group)}: an evaluation needs none of them', 'current')
            for name in given:
                cfg[name] = None
    if cfg.get('optim_wrapper') is None:
        cfg.param_scheduler = None
    remove_lost_init_cfg(cfg, level=logging.DEBUG)  # nothing is downloaded for it while the model is built
    runner, first_step = build_runner(cfg)
    runner._train_loop = NoTraining(runner)  # mmengine has no public way to set it
    if unknown:
        names = getattr(runner.test_loop.dataloader.dataset, 'metainfo', {}).get('classes')
        _compare(classes, names, checkpoint, 'test_dataloader.dataset', allow_other_classes)
    return runner, first_step


def _compare(
    model: Sequence[str] | None, dataset: Sequence[str] | None, checkpoint: str, where: str, allowed: bool
) -> None:
    """Raise or warn where the classes of a model and a dataset are known and differ."""
    from mmitpn.config_check.model import compare_classes

    if model is None or not isinstance(dataset, (list, tuple)):
        return
    problem = compare_classes(model, dataset, checkpoint=checkpoint, where=where)
    if problem is None:
        return
    if not allowed:
        raise ValueError(
            f'{problem}; or {ALLOW_OTHER_CLASSES} to compare class i of the model with class i of the dataset'
        )
    print_log(f'{ALLOW_OTHER_CLASSES}: {problem}', 'current', level=logging.WARNING)


def read_authors_file(checkpoint: str) -> Mapping[str, Any] | None:
    """Read a file of the iTPN authors, or a released one of MaskDINO; None for any other, which mmengine loads.

    Args:
        checkpoint: Path or URL.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        content = read_checkpoint(checkpoint)
        return content if is_mask_dino(content) or identify(content).layout in AUTHORS else None
    except ValueError:
        return None


def load_complete_model(
    model: nn.Module,
    content: Mapping[str, Any],
    checkpoint: str,
    *,
    allow_partial: bool = False,
    advice: str = ', or --allow-partial',
) -> None:
    """Load a file of the authors into a model that is to be evaluated.

    Args:
        model: The model, with this project's backbone.
        content: As returned by :func:`read_authors_file`.
        checkpoint: Name of the file, for the message.
        allow_partial: Accept parameters that the file does not have.
        advice: The end of the message.

    Raises:
        ValueError: If the backbone does not fit, or a parameter of the model is not in the file.
    """
    report = (load_mask_dino_checkpoint if is_mask_dino(content) else load_pretrained)(model, content)
    loaded, total = report.count('matched') + report.count('resized'), len(list(model.parameters()))
    if loaded < total and not allow_partial:
        raise ValueError(
            f'{checkpoint} has {loaded} of the {total} parameters of the model ({report.title}); the others would be '
            f'random: give a checkpoint of the whole model, such as a fine-tuned classifier{advice}'
        )
