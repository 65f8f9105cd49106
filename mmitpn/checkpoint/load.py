"""One way from a file into a module: identify, convert, compare, load, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmitpn.checkpoint.convert import to_ours
from mmitpn.checkpoint.explain import explain_backbone, explain_family, explain_layout, explain_pyramid, some
from mmitpn.checkpoint.fresh import settle_fresh
from mmitpn.checkpoint.io import read_checkpoint
from mmitpn.checkpoint.layouts import AUTHORS, FOREIGN, OURS, FileInfo, identify, part_of
from mmitpn.checkpoint.report import LoadReport
from mmitpn.checkpoint.sizes import family_of
from mmitpn.optional_mmengine import is_model_wrapper

_BACKBONE_KEYS = {'patch_embed.proj.weight', 'merge1.reduction.weight'}
_PYRAMID_KEYS = {'align8.weight', 'split8.reduction.weight'}
_BACKBONE_PARTS = ('stem', 'stages', 'main')


class _Targets(NamedTuple):
    """What is to be loaded: backbone, pyramid, and the whole model around them; None where there is none."""

    backbone: nn.Module | None = None
    pyramid: nn.Module | None = None
    whole: nn.Module | None = None


def load_pretrained(
    module: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    strict: bool = True,
    *,
    prefix: str | None = None,
    allow_objects: bool | None = None,
) -> LoadReport:
    """Load a checkpoint of any Fast-iTPN or iTPN layout into a backbone, a pyramid, or a whole model with both.

    Nothing in the module changes unless the file fits (or ``strict`` is False). The report is logged once.

    Args:
        module: A FastITPN, an ITPN, an ITPNPyramid, or a detector, segmentor or classifier that has them as
            ``backbone`` and ``neck``. Its heads are loaded only from mmitpn's own checkpoints, as far as they fit.
        source: Path or address of the file (see :func:`read_checkpoint`), or what such a file holds, wrapped or raw.
        strict: Raise unless backbone and pyramid are completely loaded. False: load what fits and log a warning. A file
            without a pyramid is a warning either way.
        prefix: Take only the weights below this prefix of the names in the file.
        allow_objects: See :func:`read_checkpoint`.

    Returns:
        What was loaded, by part.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``module`` or ``source`` is of another type.
        ValueError: If the file cannot be read, or does not fit and ``strict`` is True.
    """
    _find_targets(module)  # a module that nothing is loaded into is reported before the file is read
    if isinstance(source, Mapping):
        checkpoint, name = source, 'a dict'
    elif isinstance(source, str | os.PathLike):
        checkpoint, name = read_checkpoint(source, allow_objects=allow_objects), os.fspath(source)
    else:
        raise TypeError(f'the checkpoint is a {type(source).__name__}; give a path, an address or a dict of weights')
    return load_content(module, checkpoint, name, strict, prefix=prefix)


def load_content(
    module: nn.Module, checkpoint: Mapping[str, Any], name: str, strict: bool = True, *, prefix: str | None = None
) -> LoadReport:
    """Load what a checkpoint file holds: see :func:`load_pretrained`.

    Args:
        module: As there.
        checkpoint: What the file holds.
        name: The file, for the report.
        strict: As there.
        prefix: As there.
    """
    targets = _find_targets(module)
    try:
        info = identify(checkpoint, prefix=prefix)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None

    report = LoadReport(name, info.layout, info.description)
    chosen = _choose(targets, info, report)
    report.log()
    if strict:
        report.raise_if_not_loaded()
    for target, state in chosen:
        target.load_state_dict(state, strict=False)
    return report


def _find_targets(module: nn.Module) -> _Targets:
    if not isinstance(module, nn.Module):
        raise TypeError(f'weights are loaded into a torch module, but got a {type(module).__name__}')
    while is_model_wrapper(module):
        module = module.module
    if module.state_dict().keys() >= _BACKBONE_KEYS:
        return _Targets(backbone=module)
    if module.state_dict().keys() >= _PYRAMID_KEYS:
        return _Targets(pyramid=module)
    backbone, neck = getattr(module, 'backbone', None), getattr(module, 'neck', None)
    found = _Targets(
        backbone if isinstance(backbone, nn.Module) and backbone.state_dict().keys() >= _BACKBONE_KEYS else None,
        neck if isinstance(neck, nn.Module) and neck.state_dict().keys() >= _PYRAMID_KEYS else None,
        module,
    )
    if found.backbone is None and found.pyramid is None:
        raise TypeError(
            f'{type(module).__name__} is no FastITPN, ITPN or ITPNPyramid and has none as backbone or neck '
            f'(its backbone is {type(backbone).__name__}, its neck {type(neck).__name__})'
        )
    return found


def _choose(targets: _Targets, info: FileInfo, report: LoadReport) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Compare file and module, fill the report, and return which weights go into which module."""
    if info.layout == FOREIGN:
        report.errors.append(explain_layout(info))
        return []
    for target in (targets.backbone, targets.pyramid):
        family = family_of(target.state_dict()) if target is not None else ''
        if info.family and family and family != info.family:
            report.errors.append(explain_family(info, family, pyramid=target is targets.pyramid))
            return []
    names = _authors_head(targets.whole)
    if info.layout in AUTHORS and any(theirs in info.body for theirs in names.values()):
        info = _with_head(info, names)
    try:
        weights = to_ours(info)
    except ValueError as error:
        report.errors.append(str(error))
        return []
    report.part('other').ignored += weights.ignored
    given: dict[str, dict[str, Tensor]] = {'backbone': {}, 'pyramid': {}}
    for name, value in weights.state.items():
        given['pyramid' if part_of(name) == 'pyramid' else 'backbone'][name] = value
    for name in weights.unexpected:
        report.part(_part_in_file(name)).unexpected.append(name)

    chosen = []
    if targets.backbone is not None:
        own = targets.backbone.state_dict()
        if targets.whole is None and not any(name.startswith('norm.') for name in own):
            _leave_norm_out(given['backbone'], report)
        fitting = _match(targets.backbone, own, given['backbone'], report)
        chosen.append((targets.backbone, fitting))
        settle_fresh(report, info)
        missing, unexpected = _problems(report, _BACKBONE_PARTS)
        report.errors += filter(None, [explain_backbone(info, own, missing, unexpected)])
        if fitting:
            report.notes += weights.notes
    else:
        _ignore(report, given['backbone'], _BACKBONE_PARTS)
    if targets.pyramid is not None and (given['pyramid'] or report.part('pyramid').unexpected):
        own = targets.pyramid.state_dict()
        chosen.append((targets.pyramid, _match(targets.pyramid, own, given['pyramid'], report)))
        report.errors += filter(None, [explain_pyramid(info, own, *_problems(report, ('pyramid',)))])
    elif targets.pyramid is not None:
        own = targets.pyramid.state_dict()
        report.part('pyramid').missing += own
        report.warnings.append(
            f'there is no pyramid in the file: the neck starts fresh ({len(own)} weights keep their initial values)'
        )
    else:
        _ignore(report, given['pyramid'], ('pyramid',))
    if targets.whole is not None:
        chosen.append((targets.whole, _match_heads(targets, info, report)))
    else:
        report.part('other').ignored += info.rest
    if report.part('other').unexpected:
        report.warnings.append(f'unknown weights in the file were left out: {some(report.part("other").unexpected)}')
    if info.dtype in ('float16', 'bfloat16') and chosen:
        report.notes.append(f"the file is {info.dtype}; its values were cast to the module's own type")
    _check_finite(chosen, report)
    return chosen


def _match(
    module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """The given weights that the module takes, into the report by part; it resizes learned positions itself."""
    fitting, windows = {}, []
    for name, value in own.items():
        part = report.part(part_of(name))
        candidate = given.get(name)
        if candidate is not None and candidate.shape == value.shape:
            part.matched.append(name)
            fitting[name] = candidate
        elif candidate is not None and (fit := _position_fit(module, name, candidate)) is not None:
            (part.matched if fit.adopted else part.resized).append(name)
            fitting[name] = candidate
            there, here = f'{fit.source}x{fit.source}', f'{fit.target}x{fit.target}'
            if name != 'pos_embed':
                windows += [fit.source] if fit.adopted else []
            elif fit.adopted:
                report.notes.append(f"pos_embed takes the file's grid of {there} tokens in place of {here}")
            else:
                report.notes.append(f'pos_embed was resized from {there} to {here} tokens')
        else:
            part.missing.append(name)
            if candidate is not None and name == 'pos_embed' and candidate.shape[::2] == value.shape[::2]:
                report.errors.append(
                    f'the position embedding in the file has {candidate.shape[1]} tokens, which is no square grid, and '
                    f"the module's has {value.shape[1]}: build the backbone with the img_size the file was made with"
                )
    if windows:
        report.notes.append(f"relative positions of {len(windows)} weights take the file's window, {windows[0]}")
    for name in given:
        if name not in fitting:
            report.part(part_of(name)).unexpected.append(name)
    return fitting


def _position_fit(module: nn.Module, name: str, value: Tensor) -> Any:
    """How the module that owns a weight takes one of another shape: its ``fit_positions``; None if it does not."""
    path, _, leaf = name.rpartition('.')
    fit_positions = getattr(module.get_submodule(path), 'fit_positions', None)
    return None if fit_positions is None else fit_positions(leaf, value.shape)


def _leave_norm_out(given: dict[str, Tensor], report: LoadReport) -> None:
    """A backbone without a last norm (``final_norm=False``) starts from any file: the head norms after pooling."""
    left = [name for name in given if name.startswith('norm.')]
    for name in left:
        del given[name]
    if left:
        report.part('main').ignored += left
        report.notes.append("the file's last norm is left out: this backbone has none (final_norm=False)")


def _authors_head(whole: nn.Module | None) -> dict[str, str]:
    """Names of a classification head's weights in the model and in the authors' files."""
    names = getattr(getattr(whole, 'head', None), 'authors_names', {})
    return {f'head.{ours}': theirs for ours, theirs in names.items()}


def _with_head(info: FileInfo, names: Mapping[str, str]) -> FileInfo:
    """The file with its classification head apart from the backbone."""
    rest = {ours: info.body[theirs] for ours, theirs in names.items() if theirs in info.body}
    body = {name: value for name, value in info.body.items() if name not in names.values()}
    return replace(info, body=body, rest=rest)


def _match_heads(targets: _Targets, info: FileInfo, report: LoadReport) -> dict[str, Tensor]:
    """What else of a whole model is loaded from one of our own checkpoints: heads, a host's neck."""
    covered = ('backbone.',) * (targets.backbone is not None) + ('neck.',) * (targets.pyramid is not None)
    own = {name: value for name, value in targets.whole.state_dict().items() if not name.startswith(covered)}
    if not info.rest or (info.layout != OURS and not _authors_head(targets.whole)):
        report.part('other').ignored += info.rest
        if own:
            fresh = sorted({name.split('.')[0] for name in own})
            report.notes.append(f'not in the file, starts fresh: {some(fresh)}')
        return {}
    fitting = {}
    for name, value in own.items():
        part = report.part(name.split('.')[0])
        if name in info.rest and info.rest[name].shape == value.shape:
            part.matched.append(name)
            fitting[name] = info.rest[name]
        else:
            part.missing.append(name)
    for name in info.rest:
        if name not in fitting:
            report.part(name.split('.')[0]).unexpected.append(name)
    for head in sorted({name.split('.')[0] for name in own}):
        part = report.part(head)
        if part.missing:
            report.warnings.append(
                f'{head}: {len(part.missing)} of its weights start fresh, because they are not in the file or have '
                f'another shape there ({some(part.missing)}); another num_classes explains class layers'
            )
    return fitting


def _problems(report: LoadReport, parts: tuple[str, ...]) -> tuple[list[str], list[str]]:
    there = [report.parts[name] for name in parts if name in report.parts]
    return [name for part in there for name in part.missing], [name for part in there for name in part.unexpected]


def _ignore(report: LoadReport, given: Mapping[str, Tensor], parts: tuple[str, ...]) -> None:
    """Leave out by rule what the module has no counterpart for: the pyramid for a backbone, and the reverse."""
    for name in given:
        report.part(part_of(name)).ignored.append(name)
    for part in (report.parts[name] for name in parts if name in report.parts):
        part.ignored += part.unexpected
        part.unexpected = []


def _part_in_file(name: str) -> str:
    """Part of a name that was not converted: ours, or the authors', whose flat blocks count as the main stage."""
    theirs = ('align_dim_', 'split_', 'block_16to8.', 'block_8to4.', 'fpn_modules.')
    return 'pyramid' if name.startswith(theirs) else part_of(name)


def _check_finite(chosen: list[tuple[nn.Module, dict[str, Tensor]]], report: LoadReport) -> None:
    values = ((name, value) for _, state in chosen for name, value in state.items() if value.is_floating_point())
    broken = [name for name, value in values if not torch.isfinite(value).all()]
    if broken:
        report.errors.append(f'NaN or infinite values in {some(broken)}: the file comes from a run that diverged')
