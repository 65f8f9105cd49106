"""Weights of the main stage that may start fresh, because no file has them."""

from __future__ import annotations

from mmitpn.checkpoint.layouts import FileInfo
from mmitpn.checkpoint.report import LoadReport

FRESH = 'main (fresh)'
_OFFSET = '.gathering_offset'
_RELATIVE = ('.relative_position_bias_table', '.rel_pos_h', '.rel_pos_w')


def settle_fresh(report: LoadReport, info: FileInfo) -> None:
    """Take what may start fresh out of what is missing, and say so.

    That is the relative positions of iTPN, as in the authors' recipes, and the learned offsets of gathering tokens,
    which are ours.

    Args:
        report: The report; changed.
        info: The file.
    """
    offsets = [name for name in report.part('main').missing if name.endswith(_OFFSET)]
    if offsets:
        _start_fresh(report, offsets)
        report.notes.append(
            f'the offsets of the gathering tokens start at 0 ({len(offsets)} weights): none in the file'
        )
    _settle_relative(report, info)


def _start_fresh(report: LoadReport, names: list[str]) -> None:
    main = report.part('main')
    main.missing = [name for name in main.missing if name not in names]
    report.part(FRESH).missing += names


def _settle_relative(report: LoadReport, info: FileInfo) -> None:
    """Let relative positions that the file has not start fresh, as in the authors' recipes.

    Tables of the file are left out where the module has vectors instead.
    """
    main = report.part('main')
    fresh = [name for name in main.missing if name.endswith(_RELATIVE)]
    if fresh and info.arch is not None:
        _start_fresh(report, fresh)
        left = [name for name in main.unexpected if name.endswith(_RELATIVE)]
        main.unexpected = [name for name in main.unexpected if not name.endswith(_RELATIVE)]
        main.ignored += left
        instead = ': the file has tables, which vectors cannot be made from' if left else ': the file has none'
        report.warnings.append(f'the relative positions start fresh ({len(fresh)} weights){instead}')
    resized = [name for name in main.resized if name.endswith(_RELATIVE)]
    if resized:
        report.notes.append(
            f'relative positions of {len(resized)} weights were resized from window {info.relative_window}'
        )
