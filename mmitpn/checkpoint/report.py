"""What was loaded, what was not, and why."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mmitpn.optional_mmengine import print_log

COUNTED = ('matched', 'resized', 'ignored', 'missing', 'unexpected')
_PART_ORDER = ('stem', 'stages', 'main', 'pyramid')


@dataclass
class PartReport:
    """Names of one part's weights, each in exactly one list; those of the module unless said otherwise.

    Attributes:
        matched: Loaded as they are.
        resized: Loaded after resizing (the position embedding).
        ignored: In the file (named as there where nothing was converted), left out by rule.
        missing: In the module, without a value in the file: still at their initial values.
        unexpected: In the file, without a place in the module.
    """

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def counts(self) -> tuple[int, ...]:
        """Lengths of the five lists, in the order of ``COUNTED``."""
        return tuple(len(getattr(self, name)) for name in COUNTED)


@dataclass
class LoadReport:
    """The account of one loading.

    Attributes:
        source: Path or address of the file, or 'a dict'.
        layout: Name of the file's layout, a key of ``mmitpn.checkpoint.layouts.TITLES``.
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

    @property
    def loaded(self) -> bool:
        """Whether what was to be loaded was loaded."""
        return not self.errors

    def part(self, name: str) -> PartReport:
        """The part of that name, made if there is none."""
        return self.parts.setdefault(name, PartReport())

    def names(self, kind: str) -> list[str]:
        """All names of one of ``COUNTED`` (``'missing'``, ...), over all parts.

        Raises:
            ValueError: If ``kind`` is none of them.
        """
        if kind not in COUNTED:
            raise ValueError(f'kind is {kind!r}; allowed: {", ".join(COUNTED)}')
        return [name for part in self.parts.values() for name in getattr(part, kind)]

    def count(self, kind: str) -> int:
        """How many weights there are of one of ``COUNTED``, over all parts."""
        return len(self.names(kind))

    def table(self) -> str:
        """The counts by part as a plain-text table."""
        names = [*(n for n in _PART_ORDER if n in self.parts), *(n for n in self.parts if n not in _PART_ORDER)]
        rows = [(name, self.parts[name].counts()) for name in names]
        lines = [('part', *COUNTED), *((name, *counts) for name, counts in rows if any(counts))]
        if len(rows) > 1:
            lines.append(('all', *(self.count(kind) for kind in COUNTED)))
        width = max(len(name) for name, *_ in lines)
        cells = ((f'{name:<{width}}', *(f'{count:>10}' for count in counts)) for name, *counts in lines)
        return '\n'.join(f'| {" | ".join(row)} |' for row in cells)

    def summary(self) -> str:
        """Source, layout, table and notes as one text."""
        lines = [f'Weights from {self.source}: {self.title or self.layout}', self.table()]
        lines += [f'note: {text}' for text in self.notes]
        lines += [f'warning: {text}' for text in self.warnings]
        lines += [f'NOT LOADED: {text}' for text in self.errors]
        return '\n'.join(lines)

    def log(self) -> None:
        """Write the summary to mmengine's current logger, once, as a warning if there is something to warn of."""
        level = logging.WARNING if self.warnings or self.errors else logging.INFO
        print_log(self.summary(), logger='current', level=level)

    def raise_if_not_loaded(self) -> None:
        """Raise unless what was to be loaded was loaded.

        Raises:
            ValueError: With the reasons and the settings that explain them.
        """
        if self.errors:
            raise ValueError(f'{self.source} was not loaded: ' + '; '.join(self.errors))
