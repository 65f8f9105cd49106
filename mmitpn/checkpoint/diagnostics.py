"""What was loaded and what was not: the report, and explanations that name the setting to change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmitpn.checkpoint.formats import (
    FAST,
    ITPN,
    PYRAMID_KINDS,
    FileInfo,
    infer_arch,
    infer_pyramid,
    infer_relative_position,
)
from mmitpn.optional_mmengine import print_log
from mmitpn.tables import format_table

COUNTED = ('matched', 'resized', 'ignored', 'missing', 'unexpected')
_PART_ORDER = ('stem', 'stages', 'main', 'pyramid')
_GAMMAS = ('.gamma', '.gamma_1', '.gamma_2')
_FIRST_LAYER = 'patch_embed.proj.weight'
_DEFAULT_WINDOW = 14  # tokens along the side of the images that the networks were pre-trained on


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names of a list."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


# --- the report ----------------------------------------------------------------------------------------------------


@dataclass
class PartReport:
    """Names of one part's weights, each in exactly one list; those of the module unless said otherwise.

    Attributes:
        matched: Loaded as they are.
        resized: Loaded after resizing (learned positions) or adapting (the first layer, to other input channels).
        ignored: In the file (named as there where nothing was converted), left out by rule.
        missing: In the module, without a value in the file: still at their initial values.
        unexpected: In the file, without a counterpart in the module.
    """

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def counts(self) -> tuple[int, ...]:
        """Lengths of the five lists, in the order of ``COUNTED``."""
        return tuple(len(getattr(self, name)) for name in COUNTED)


def group_by_part(
    part_of: Callable[[str], str], order: Iterable[str] = (), **names: Iterable[str]
) -> dict[str, PartReport]:
    """Names of weights of each of ``COUNTED`` (``missing=[...]``), by part of the network.

    The parts of the names in ``order`` come first, in their order.
    """
    parts = {part_of(name): PartReport() for name in order}
    for kind, listed in names.items():
        for name in listed:
            getattr(parts.setdefault(part_of(name), PartReport()), kind).append(name)
    return parts


def names_in(parts: Mapping[str, PartReport], kind: str, order: Iterable[str]) -> list[str]:
    """All names of one of ``COUNTED`` in some parts, in the order of those parts."""
    return [name for part in order if part in parts for name in getattr(parts[part], kind)]


@dataclass
class Findings:
    """The findings of one step of loading; a report is the sum of them. Attributes as in :class:`LoadReport`."""

    parts: dict[str, PartReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class LoadReport:
    """Result of loading one checkpoint.

    Attributes:
        source: Path or address of the file, or 'a dict'.
        layout: Name of the file's layout, a key of ``mmitpn.checkpoint.formats.TITLES``.
        title: The layout in words, with the sizes found in the file.
        parts: Part of the network -> its weights: stem, stages, main, pyramid, then the heads by name, and other.
        notes: What was done that a reader should know.
        warnings: What was not done but is no reason to stop, such as a neck that starts fresh.
        errors: Why the module was not really loaded; empty if it was.
    """

    source: str
    layout: str
    title: str = ''
    parts: dict[str, PartReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @classmethod
    def from_findings(cls, source: str, layout: str, title: str, findings: Iterable[Findings]) -> LoadReport:
        """The report on all steps of loading, from the findings of each in their order."""
        report = cls(source, layout, title)
        for one in findings:
            for name, part in one.parts.items():
                for kind in COUNTED:
                    getattr(report.part(name), kind).extend(getattr(part, kind))
            report.notes += one.notes
            report.warnings += one.warnings
            report.errors += one.errors
        return report

    @property
    def loaded(self) -> bool:
        """Whether what was to be loaded was loaded."""
        return not self.errors

    def part(self, name: str) -> PartReport:
        """The part of that name, added if there is none."""
        return self.parts.setdefault(name, PartReport())

    def names(self, kind: str) -> list[str]:
        """All names of one kind, over all parts.

        Args:
            kind: ``'matched'``, ``'resized'``, ``'ignored'``, ``'missing'`` or ``'unexpected'``.

        Raises:
            ValueError: If ``kind`` is none of them.
        """
        if kind not in COUNTED:
            raise ValueError(f'kind is {kind!r}; allowed: {", ".join(COUNTED)}')
        return names_in(self.parts, kind, self.parts)

    def count(self, kind: str) -> int:
        """How many weights there are of one of ``COUNTED``, over all parts."""
        return len(self.names(kind))

    def table(self) -> str:
        """The counts by part as a plain-text table."""
        names = [*(n for n in _PART_ORDER if n in self.parts), *(n for n in self.parts if n not in _PART_ORDER)]
        counts = [(name, self.parts[name].counts()) for name in names]
        rows = [(name, *numbers) for name, numbers in counts if any(numbers)]
        if len(names) > 1:
            rows.append(('all', *(self.count(kind) for kind in COUNTED)))
        return format_table(('part', *COUNTED), rows)

    def summary(self) -> str:
        """Source, layout, table and notes as one text."""
        lines = [f'Weights from {self.source}: {self.title or self.layout}', self.table()]
        lines += [f'note: {text}' for text in self.notes]
        lines += [f'warning: {text}' for text in self.warnings]
        lines += [f'NOT LOADED: {text}' for text in self.errors]
        return '\n'.join(lines)

    def log(self) -> None:
        """Write the summary to mmengine's current logger, once, at level WARNING if it has warnings or errors."""
        level = logging.WARNING if self.warnings or self.errors else logging.INFO
        print_log(self.summary(), logger='current', level=level)

    def raise_if_not_loaded(self) -> None:
        """Raise unless what was to be loaded was loaded.

        Raises:
            ValueError: With the reasons and the settings that explain them.
        """
        if self.errors:
            raise ValueError(f'{self.source} was not loaded: ' + '; '.join(self.errors))


# --- why a file does not fit a module ------------------------------------------------------------------------------


def backbone_settings(info: FileInfo) -> str:
    """The settings of a backbone for a file, as in a config."""
    fast = info.family == FAST
    settings = [f"type='mmitpn.{'FastITPN' if fast else 'ITPN'}'"]
    settings += [info.arch.setting] if info.arch else []
    if info.in_channels not in (0, 3):
        settings.append(f'in_channels={info.in_channels}')
    if info.layer_scale is not None and info.layer_scale != fast:
        settings.append(f'layer_scale_init_value={0.1 if info.layer_scale else None}')
    if info.relative_position:
        settings.append(f'relative_position={info.relative_position!r}')
        if info.relative_window != _DEFAULT_WINDOW:
            settings.append(f'relative_window={info.relative_window}')
    return ', '.join(settings)


def explain_layout(info: FileInfo) -> str:
    """Why a file of no known layout is not loaded."""
    looks = f'it looks like {info.looks_like}' if info.looks_like else 'it is of no known layout'
    return (
        f'these are not weights of the iTPN family: {looks} (it holds {info.examples()}). Give a Fast-iTPN, iTPN or '
        "mmitpn checkpoint; if its weights lie below a prefix, name it: prefix='teacher.'"
    )


def explain_family(info: FileInfo, family: str, *, pyramid: bool) -> str:
    """Why a file of one family is not loaded into a module (a backbone, or the pyramid) of the other."""
    kind = f"set kind='{PYRAMID_KINDS[info.family]}' on the neck"
    use = kind if pyramid else f'set {backbone_settings(info)} on the backbone'
    return (
        f'wrong family: this is {info.title} (it holds {info.examples()}). Its blocks are built differently from '
        f"{family}'s and cannot be converted into them: give a {family} checkpoint, or {use}"
    )


def explain_backbone(info: FileInfo, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    """Why a backbone with the state dict ``own`` was not completely loaded; empty if it was."""
    if not missing and not unexpected:
        return ''
    if info.arch is None:
        return f'there is no backbone in the file, or it is cut off (it holds {info.examples()})'
    arch = infer_arch(own)
    if arch is not None and info.arch != arch:
        cut = '' if info.arch.name else ', or the file is cut off'
        return (
            f'the file looks like {info.arch}, the module is {arch}: set {info.arch.setting} on the backbone{cut} '
            f'(first names that do not fit: {some(missing + unexpected, 2)})'
        )
    scaled = any(name.endswith(_GAMMAS) for name in own)
    if info.layer_scale and not scaled:
        names = [name for name in unexpected if name.endswith(_GAMMAS)]
        return (
            f'the file has layer scale ({some(names, 2)}), the module has none because of layer_scale_init_value=None: '
            'set layer_scale_init_value=0.1 on the backbone'
        )
    if scaled and not info.layer_scale:
        names = [name for name in missing if name.endswith(_GAMMAS)]
        return (
            f'the module has layer scale ({some(names, 2)}), the file has none: '
            'set layer_scale_init_value=None on the backbone'
        )
    if info.family == ITPN and info.relative_position and infer_relative_position(own)[0] is None:
        return (
            f'the file has relative positions ({info.relative_position}), the module has none: set '
            f'relative_position={info.relative_position!r} on the backbone'
        )
    if sorted(unexpected) == ['norm.bias', 'norm.weight'] and not missing:
        return (
            "the file's last norm stands before pooling, the module has none there: set final_norm=True on the "
            'backbone and with_norm=False on the head'
        )
    return _explain_names('backbone', own, missing, unexpected)


def explain_pyramid(info: FileInfo, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    """Why a pyramid was not completely loaded, though there is one in the file; arguments as for the backbone."""
    if not missing and not unexpected:
        return ''
    theirs, ours = info.pyramid, infer_pyramid(own)
    if theirs is None or ours is None:
        return _explain_names('pyramid', own, missing, unexpected)
    settings = []
    if theirs.embed_dim != ours.embed_dim:
        channels = tuple(theirs.embed_dim // divisor for divisor in (4, 2, 1))
        settings.append(f"in_channels={channels} on the neck (and the backbone's arch that goes with it)")
    if theirs.family != ours.family:
        settings.append(f"kind='{theirs.kind}' on the neck")
    # The hidden width follows from the channels unless it is set.
    names = ('out_channels', 'depth') if theirs.out_channels != ours.out_channels else ('depth', 'hidden_channels')
    settings += [
        f'{name}={getattr(theirs, name)} on the neck' for name in names if getattr(theirs, name) != getattr(ours, name)
    ]
    if not settings:
        return _explain_names('pyramid', own, missing, unexpected)
    return (
        f'the pyramid in the file has {theirs} for a backbone of {theirs.embed_dim} channels, the module has {ours} '
        f'for {ours.embed_dim}: set {", ".join(settings)} '
        f'(first names that do not fit: {some(missing + unexpected, 2)})'
    )


def explain_position_embedding(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Why a backbone does not take the position embedding of a file; empty if it differs in more than its length."""
    there, here = given.get('pos_embed'), own['pos_embed']
    if there is None or there.shape[::2] != here.shape[::2]:
        return ''
    return (
        f'the position embedding in the file has {there.shape[1]} tokens, which is not a square grid, and '
        f"the module's has {here.shape[1]}: resize that of the file to a square grid, or give another file"
    )


def describe_fits(fits: Mapping[str, Any]) -> list[str]:
    """Notes on weights of another shape, by the results of :func:`mmitpn.checkpoint.loader.fit_shape`."""
    notes = []
    fit = fits.get('pos_embed')
    if fit is not None:
        there, here = f'{fit.source}x{fit.source}', f'{fit.target}x{fit.target}'
        notes.append(
            f"pos_embed takes the file's grid of {there} tokens in place of {here}"
            if fit.adopted
            else f'pos_embed was resized from {there} to {here} tokens'
        )
    fit = fits.get(_FIRST_LAYER)
    if fit is not None:
        notes.append(f'{_FIRST_LAYER} was adapted from {fit.source} to {fit.target} input channels by {fit.setting}')
    windows = [fit.source for name, fit in fits.items() if fit.adopted and name != 'pos_embed']
    if windows:
        notes.append(f"relative positions of {len(windows)} weights take the file's window, {windows[0]}")
    return notes


def _explain_names(what: str, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    reasons = []
    if missing:
        reasons.append(
            f'{len(missing)} of the {len(own)} weights of the {what} are not in the file ({some(missing)}): it is cut '
            'off or comes from another network'
        )
    if unexpected:
        reasons.append(f'the file has {what} weights that the module has no place for ({some(unexpected)})')
    return '; '.join(reasons)
