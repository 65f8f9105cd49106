"""Load a checkpoint into a module: find targets, read, identify, convert, match, report, load.

:func:`load_pretrained` loads into a module that is built already; :class:`PretrainedModule` is the base class of the
backbones and necks whose weights come from a file by ``init_cfg`` or by ``from_pretrained``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mmitpn.checkpoint.diagnostics import (
    Findings,
    LoadReport,
    PartReport,
    describe_fits,
    explain_backbone,
    explain_family,
    explain_layout,
    explain_position_embedding,
    explain_pyramid,
    group_by_part,
    names_in,
    some,
)
from mmitpn.checkpoint.formats import (
    AUTHORS,
    FOREIGN,
    OURS,
    FileInfo,
    identify,
    infer_family,
    part_in_file,
    part_of,
)
from mmitpn.checkpoint.key_mapping import ConvertedState, convert_from_authors
from mmitpn.checkpoint.reader import read_checkpoint
from mmitpn.config_types import is_type
from mmitpn.optional_mmengine import BaseModule, MMLogger, is_model_wrapper, print_log, update_init_info

if TYPE_CHECKING:
    from typing_extensions import Self

FRESH = 'main (fresh)'  # the part of a report with the weights that may start fresh, because no file has them
_BACKBONE_KEYS = {'patch_embed.proj.weight', 'merge1.reduction.weight'}
_PYRAMID_KEYS = {'align8.weight', 'split8.reduction.weight'}
_BACKBONE_PARTS = ('stem', 'stages', 'main')
_OFFSET = '.gathering_offset'
_RELATIVE = ('.relative_position_bias_table', '.rel_pos_h', '.rel_pos_w')


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
        source: Path or address of the file (see :func:`read_checkpoint`), or its contents, wrapped or raw.
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
    """Load the contents of the file ``name``; arguments as of :func:`load_pretrained`."""
    targets = _find_targets(module)
    try:
        info = identify(checkpoint, prefix=prefix)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from None
    steps = _match_file(targets, info)
    report = LoadReport.from_findings(name, info.layout, info.description, (step.findings for step in steps))
    report.log()
    if strict:
        report.raise_if_not_loaded()
    for step in steps:
        if step.module is not None:
            step.module.load_state_dict(step.state, strict=False)
    return report


# --- what is loaded into -------------------------------------------------------------------------------------------


class _Targets(NamedTuple):
    """What is to be loaded: backbone, pyramid, and the whole model around them; None where there is none."""

    backbone: nn.Module | None = None
    pyramid: nn.Module | None = None
    whole: nn.Module | None = None


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


# --- matching weights by name and shape ----------------------------------------------------------------------------


@dataclass
class Match:
    """Comparison of the weights of a module with those of a file, by name and shape.

    Attributes:
        state: The weights of the file that the module takes.
        fits: Those of another shape, by name: how the module takes them, see :func:`fit_shape`.
        refused: Those of another shape, by name: why the module does not take them, with the setting to change.
        missing: Names in the module without a value in the file, or with one of another shape.
        unexpected: Names in the file that the module does not take.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    fits: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def resized(self) -> list[str]:
        """Names of the weights that the module resizes or adapts."""
        return [name for name, fit in self.fits.items() if not fit.adopted]

    @property
    def matched(self) -> list[str]:
        """Names of the weights that are loaded as they are."""
        resized = self.resized
        return [name for name in self.state if name not in resized]


def match_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], module: nn.Module | None = None) -> Match:
    """Find the weights of a file that a module takes.

    Args:
        own: The module's weights by name.
        given: The file's weights by the same names.
        module: The module, whose submodules may accept other shapes (:func:`fit_shape`); None accepts none.
    """
    match = Match()
    for name, value in own.items():
        candidate = given.get(name)
        if candidate is None:
            match.missing.append(name)
        elif candidate.shape == value.shape:
            match.state[name] = candidate
        elif module is not None and (fit := fit_shape(module, name, candidate.shape)) is not None and not fit.error:
            match.state[name], match.fits[name] = candidate, fit
        else:
            match.missing.append(name)
            if module is not None and fit is not None:
                match.refused[name] = fit.error
    match.unexpected = [name for name in given if name not in match.state]
    return match


def fit_shape(module: nn.Module, name: str, shape: torch.Size) -> Any:
    """How a module takes a weight of another shape: the only question that is asked to a module about shapes.

    The submodule that owns the weight answers by its ``fit_weight`` and adapts the weight itself when the state dict is
    loaded.

    Args:
        module: The module.
        name: Name of the weight in it.
        shape: Shape of the weight in the file.

    Returns:
        An object with ``adopted`` (the module takes the file's shape; else the weight is adapted), ``source`` and
        ``target`` (sides of the two grids in tokens, or input channels), ``setting`` (what decides it) and ``error``
        (why the module does not take the weight, if so); None if it is no weight that a module adapts.
    """
    path, _, leaf = name.rpartition('.')
    fit_weight = getattr(module.get_submodule(path), 'fit_weight', None)
    return None if fit_weight is None else fit_weight(leaf, shape)


# --- matching a file: each step returns what goes into one module, and its findings ---------------------------------


@dataclass
class _Step:
    """Result of one step: the findings, and the weights that go into a module, if there is one."""

    findings: Findings
    module: nn.Module | None = None
    state: dict[str, Tensor] = field(default_factory=dict)


def _match_file(targets: _Targets, info: FileInfo) -> list[_Step]:
    """Compare a file with the modules that it is to be loaded into."""
    error = _explain_wrong_file(targets, info)
    if error:
        return [_Step(Findings(errors=[error]))]
    if info.layout in AUTHORS:
        info = _split_authors_head(info, _authors_head(targets.whole))
    try:
        converted = convert_from_authors(info)
    except ValueError as error:
        return [_Step(Findings(errors=[str(error)]))]
    unknown = [name for name in converted.unexpected if part_in_file(name) == 'other']
    steps = [
        _Step(Findings({'other': PartReport(ignored=converted.ignored, unexpected=unknown)})),
        _match_backbone(targets, info, converted),
        _match_pyramid(targets, info, converted),
        _match_heads(targets, info),
    ]
    return [*steps, _Step(_check_values(info, unknown, steps))]


def _explain_wrong_file(targets: _Targets, info: FileInfo) -> str:
    """Why nothing of the file can be loaded, by its layout and family; empty if it can."""
    if info.layout == FOREIGN:
        return explain_layout(info)
    for target in (targets.backbone, targets.pyramid):
        family = infer_family(target.state_dict()) if target is not None else ''
        if info.family and family and family != info.family:
            return explain_family(info, family, pyramid=target is targets.pyramid)
    return ''


def _match_backbone(targets: _Targets, info: FileInfo, converted: ConvertedState) -> _Step:
    module, whole = targets.backbone, targets.whole
    given = {name: value for name, value in converted.state.items() if part_of(name) != 'pyramid'}
    unexpected = [name for name in converted.unexpected if part_in_file(name) in _BACKBONE_PARTS]
    if module is None:  # left out by rule, as the pyramid is for a backbone
        return _Step(Findings(group_by_part(part_in_file, ignored=[*given, *unexpected])))
    own = module.state_dict()
    final_norm: list[str] = []
    if whole is None and not any(name.startswith('norm.') for name in own):  # final_norm=False: the head norms
        final_norm = [name for name in given if name.startswith('norm.')]
    match = match_weights(own, {name: value for name, value in given.items() if name not in final_norm}, module)
    parts = _parts_of(match, ignored=final_norm, unexpected=unexpected)
    fresh = _separate_fresh(parts.get('main', PartReport()), info)
    parts.update(fresh.parts)
    missing, unexpected = (names_in(parts, kind, _BACKBONE_PARTS) for kind in ('missing', 'unexpected'))
    missing, unexpected = ([name for name in names if name not in match.refused] for names in (missing, unexpected))

    notes = ["the file's last norm is left out: this backbone has none (final_norm=False)"] if final_norm else []
    notes += [*describe_fits(match.fits), *fresh.notes, *(converted.notes if match.state else [])]
    errors = [
        *(f'{name}: {reason}' for name, reason in match.refused.items()),
        explain_position_embedding(own, given) if 'pos_embed' in match.missing else '',
        explain_backbone(info, own, missing, unexpected),
    ]
    return _Step(Findings(parts, notes, fresh.warnings, [text for text in errors if text]), module, match.state)


def _match_pyramid(targets: _Targets, info: FileInfo, converted: ConvertedState) -> _Step:
    module = targets.pyramid
    given = {name: value for name, value in converted.state.items() if part_of(name) == 'pyramid'}
    unexpected = [name for name in converted.unexpected if part_in_file(name) == 'pyramid']
    if module is None:
        return _Step(Findings(group_by_part(part_in_file, ignored=[*given, *unexpected])))
    own = module.state_dict()
    if not given and not unexpected:
        warning = (
            f'there is no pyramid in the file: the neck starts fresh ({len(own)} weights keep their initial values)'
        )
        return _Step(Findings({'pyramid': PartReport(missing=list(own))}, warnings=[warning]))
    match = match_weights(own, given, module)
    parts = _parts_of(match, unexpected=unexpected)
    missing, unexpected = (names_in(parts, kind, ('pyramid',)) for kind in ('missing', 'unexpected'))
    error = explain_pyramid(info, own, missing, unexpected)
    return _Step(Findings(parts, errors=[error] if error else []), module, match.state)


def _match_heads(targets: _Targets, info: FileInfo) -> _Step:
    """What else of a whole model is loaded from one of our own checkpoints: heads, a neck of mmdet or mmseg."""
    module = targets.whole
    ignored = {'other': PartReport(ignored=list(info.rest))}
    if module is None:
        return _Step(Findings(ignored))
    covered = ('backbone.',) * (targets.backbone is not None) + ('neck.',) * (targets.pyramid is not None)
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(covered)}
    if not info.rest or (info.layout != OURS and not _authors_head(module)):
        heads = sorted({_top(name) for name in own})
        notes = [f'not in the file, starts fresh: {some(heads)}'] if heads else []
        return _Step(Findings(ignored, notes), module)
    match = match_weights(own, info.rest)
    order = [*own, *info.rest]
    parts = group_by_part(_top, order, matched=match.matched, missing=match.missing, unexpected=match.unexpected)
    warned = [
        f'{head}: {len(parts[head].missing)} of its weights start fresh, because they are not in the file or have '
        f'another shape there ({some(parts[head].missing)}); another num_classes explains class layers'
        for head in sorted({_top(name) for name in own})
        if parts[head].missing
    ]
    return _Step(Findings(parts, warnings=warned), module, match.state)


def _check_values(info: FileInfo, unknown: list[str], steps: Sequence[_Step]) -> Findings:
    """Findings on the file as a whole: unknown weights, its type, values that are NaN or infinite."""
    findings = Findings()
    if unknown:
        findings.warnings.append(f'unknown weights in the file were left out: {some(unknown)}')
    if info.dtype in ('float16', 'bfloat16') and any(step.module is not None for step in steps):
        findings.notes.append(f"the file is {info.dtype}; its values were cast to the module's own type")
    values = ((name, value) for step in steps for name, value in step.state.items() if value.is_floating_point())
    broken = [name for name, value in values if not torch.isfinite(value).all()]
    if broken:
        findings.errors.append(f'NaN or infinite values in {some(broken)}: the file comes from a run that diverged')
    return findings


def _separate_fresh(main: PartReport, info: FileInfo) -> Findings:
    """Separate the weights of the main stage that may start fresh from those that are missing.

    That is the relative positions of iTPN, as in the authors' recipes (tables in the file are left out where the module
    has vectors instead), and the learned offsets of gathering tokens, which the authors do not have.
    """
    offsets = [name for name in main.missing if name.endswith(_OFFSET)]
    relative = [name for name in main.missing if name.endswith(_RELATIVE)] if info.arch is not None else []
    left_out = [name for name in main.unexpected if name.endswith(_RELATIVE)] if relative else []
    resized = [name for name in main.resized if name.endswith(_RELATIVE)]
    fresh = [*offsets, *relative]
    main = replace(
        main,
        missing=[name for name in main.missing if name not in fresh],
        unexpected=[name for name in main.unexpected if name not in left_out],
        ignored=main.ignored + left_out,
    )
    findings = Findings({'main': main})
    if fresh:
        findings.parts[FRESH] = PartReport(missing=fresh)
    if offsets:
        findings.notes.append(
            f'the offsets of the gathering tokens start at 0 ({len(offsets)} weights): none in the file'
        )
    if relative:
        instead = ': the file has tables, which cannot be converted to vectors' if left_out else ': the file has none'
        findings.warnings.append(f'the relative positions start fresh ({len(relative)} weights){instead}')
    if resized:
        findings.notes.append(
            f'relative positions of {len(resized)} weights were resized from window {info.relative_window}'
        )
    return findings


def _parts_of(match: Match, *, ignored: Sequence[str] = (), unexpected: Sequence[str] = ()) -> dict[str, PartReport]:
    """A comparison by part, with the names of the file that were left out, or not converted, before it."""
    return group_by_part(
        part_in_file,
        matched=match.matched,
        resized=match.resized,
        ignored=ignored,
        missing=match.missing,
        unexpected=[*unexpected, *match.unexpected],
    )


def _authors_head(whole: nn.Module | None) -> dict[str, str]:
    """Names of a classification head's weights in the model and in the authors' files."""
    names = getattr(getattr(whole, 'head', None), 'authors_names', {})
    return {f'head.{ours}': theirs for ours, theirs in names.items()}


def _split_authors_head(info: FileInfo, names: Mapping[str, str]) -> FileInfo:
    """The file with its classification head separate from the backbone, where both have one."""
    rest = {ours: info.body[theirs] for ours, theirs in names.items() if theirs in info.body}
    if not rest:
        return info
    body = {name: value for name, value in info.body.items() if name not in names.values()}
    return replace(info, body=body, rest=rest)


def _top(name: str) -> str:
    return name.split('.', 1)[0]


# --- modules that load a file themselves ---------------------------------------------------------------------------

_PRETRAINED_TYPES = ('Pretrained', 'PretrainedInit')  # registered as the first, in pure Python configs the second
_PRETRAINED_KEYS = ('type', 'checkpoint', 'prefix', 'strict', 'allow_objects', 'map_location')


class QuietInit(BaseModule):
    """A ``BaseModule`` that logs what ``init_weights`` did to each parameter only if there is a log file.

    mmengine logs two lines for every parameter of the outermost module, on the console where there is no log file.
    """

    def _dump_init_info(self) -> None:
        handlers = MMLogger.get_current_instance().handlers
        if any(isinstance(handler, logging.FileHandler) for handler in handlers):
            super()._dump_init_info()


class PretrainedModule(QuietInit):
    """A ``BaseModule`` whose ``init_cfg=dict(type='Pretrained', ...)`` cannot fail silently.

    mmengine's own 'Pretrained' initialization loads what happens to match by name and logs the rest. Here such an
    entry goes through :func:`mmitpn.checkpoint.load_pretrained`, which converts every known layout and raises when the
    module was not really loaded. Entries of other types go to mmengine unchanged.

    Subclasses initialize themselves when they are built; :meth:`init_weights`, which runners call afterwards, only
    applies ``init_cfg``. :meth:`from_pretrained` builds and loads in one step, without a runner.

    Args:
        init_cfg: An mmengine initialization config or a list of them. An entry of type 'Pretrained' takes
            ``checkpoint`` (path or address) and, optionally, ``prefix`` (take only the names below it, such as
            ``'backbone.'``), ``strict`` (default True: raise instead of warn) and ``allow_objects`` (see
            :func:`mmitpn.checkpoint.read_checkpoint`).

    Raises:
        TypeError: If ``init_cfg`` is neither a dict nor a list of dicts.
        ValueError: If an entry of type 'Pretrained' has an unknown key or no checkpoint.
    """

    def __init__(self, init_cfg: dict | Sequence[dict] | None = None) -> None:
        super().__init__(init_cfg)
        for cfg in filter(_is_pretrained, self._init_cfgs()):
            _check_pretrained(cfg)
        self._awaits_weights = any(map(_is_pretrained, self._init_cfgs()))

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike | Mapping[str, Any],
        *,
        prefix: str | None = None,
        allow_objects: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Build a module of the sizes of a checkpoint, and load it.

        Settings that can be inferred from the file (arch, input channels, layer scale, relative positions; channels,
        kind, depth and hidden channels of a pyramid; the grid of positions) need not be given.

        Args:
            checkpoint: Path or address of a file of any known layout, or the contents of such a file.
            prefix: Take only the weights below this prefix of the names in the file.
            allow_objects: See :func:`read_checkpoint`.
            settings: Arguments of the class, which override those of the file: ``out_indices=(2,)``,
                ``drop_path_rate=0.1``, ``img_size=512``, ``num_outs=4``, ... A wrong name is a TypeError, as for the
                class itself.

        Returns:
            The module with the weights, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is of another family, has no such module, or does not fit the settings.
        """
        if 'init_cfg' in settings:
            raise ValueError(f'from_pretrained loads {checkpoint!s}: leave init_cfg={settings["init_cfg"]!r} out')
        if isinstance(checkpoint, Mapping):
            content, name = checkpoint, 'a dict'
        else:
            content, name = read_checkpoint(checkpoint, allow_objects=allow_objects), os.fspath(checkpoint)
        try:
            info = identify(content, prefix=prefix)
            if info.layout == FOREIGN:
                raise ValueError(explain_layout(info))
            read = cls._settings_of(info, settings)
        except ValueError as error:
            raise ValueError(f'{cls.__name__}.from_pretrained({name!r}): {error}') from None
        module = cls(**{**read, **settings})
        load_content(module, content, name, prefix=prefix)
        module.is_init = True
        return module.eval()

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the class that are inferred from a file; those that the user gives must not contradict it.

        Raises:
            ValueError: If they do, or the file has no such module.
        """
        raise NotImplementedError(f'{cls.__name__} does not define which settings are inferred from a file')

    def _dump_init_info(self) -> None:
        """Nothing: mmengine records the outermost module before the file is loaded, and the report has more detail."""

    def _file_info(self) -> FileInfo | None:
        """Identify the file of ``init_cfg`` by the names and shapes of its weights; their values are not read.

        None without such a file, or if it cannot be read: a model that is built to load other weights does not need
        it, and where it is needed :meth:`init_weights` reports what is wrong with it.
        """
        cfg = next(filter(_is_pretrained, reversed(self._init_cfgs())), None)
        if cfg is None:
            return None
        try:
            content = read_checkpoint(cfg['checkpoint'], allow_objects=cfg.get('allow_objects'), mmap=True)
            return identify(content, prefix=cfg.get('prefix'))
        except (OSError, ValueError) as error:
            print_log(f'the file of init_cfg is not read while the module is built: {error}', 'current', logging.DEBUG)
            return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if any(name.startswith(prefix) for name in state_dict):
            self._awaits_weights = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _remind_of_init_cfg(self) -> None:
        """Warn, once, when the module is used before the weights of its ``init_cfg`` were loaded."""
        if not self._awaits_weights or torch.compiler.is_compiling():
            return
        self._awaits_weights = False
        if not self.is_init:
            name = type(self).__name__
            warnings.warn(
                f'{name} runs with random weights: init_weights(), which loads the checkpoint of its init_cfg, was not'
                f' called. Call model.init_weights(), or build the module by {name}.from_pretrained(FILE)',
                stacklevel=3,
            )

    def init_weights(self) -> None:
        """Apply ``init_cfg``: the initializations of mmengine first, then the pre-trained weights.

        A second call does nothing but mmengine's warning.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If the checkpoint is not one for this module (unless its entry says ``strict=False``).
        """
        if self.is_init:
            super().init_weights()
            return
        cfgs, init_cfg = self._init_cfgs(), self.init_cfg
        # mmengine must not see the pre-trained entries, which it would load its own way.
        self.init_cfg = [cfg for cfg in cfgs if not _is_pretrained(cfg)]
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        try:
            for cfg in filter(_is_pretrained, cfgs):
                options = {key: cfg[key] for key in ('prefix', 'strict', 'allow_objects') if cfg.get(key) is not None}
                load_pretrained(self, cfg['checkpoint'], **options)
                if hasattr(self, '_params_init_info'):  # mmengine's log of initializations, while it builds a model
                    update_init_info(self, init_info=f'load_pretrained from {cfg["checkpoint"]}')
        except Exception:
            self.is_init = False
            raise

    def _init_cfgs(self) -> list[dict]:
        cfgs = [] if not self.init_cfg else [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg)
        for cfg in cfgs:
            if not isinstance(cfg, dict) or 'type' not in cfg:
                raise TypeError(f"init_cfg must be a dict with a 'type', or a list of them, but got {self.init_cfg!r}")
        return cfgs


def _is_pretrained(cfg: dict) -> bool:
    return is_type(cfg, *_PRETRAINED_TYPES)


def _check_pretrained(cfg: dict) -> None:
    unknown = sorted(set(cfg) - set(_PRETRAINED_KEYS))
    if unknown:
        raise ValueError(
            f"init_cfg of type 'Pretrained' has unknown keys {unknown}; it takes {list(_PRETRAINED_KEYS[1:])}"
        )
    if not isinstance(cfg.get('checkpoint'), str | os.PathLike) or not cfg['checkpoint']:
        raise ValueError(
            f"init_cfg of type 'Pretrained' needs checkpoint='PATH or URL', but got {cfg.get('checkpoint')!r}; "
            f'leave init_cfg out to start from random weights'
        )
