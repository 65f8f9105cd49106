"""What the labels of a whole semantic dataset say together: values without a class, binary maps, nothing to learn."""

from __future__ import annotations

from collections.abc import Iterable

from .semantic import FIX, IGNORED, SemanticSummary
from .wording import listing


def judge_labels(summary: SemanticSummary, *, train: bool) -> None:
    """Add what the counts of a dataset say to its problems and warnings.

    Args:
        summary: The counts of all images that were looked at.
        train: Whether the dataset is trained on; one that is only evaluated may show few classes.
    """
    number = len(summary.classes)
    strange = sorted(set(summary.loaded) - set(range(number)) - {summary.ignored_label})
    if is_black_and_white(summary):
        summary.problems[_black_and_white(number)] = []
    elif strange:
        stored = [key for key in summary.stored if key[1] in strange]
        seen = [
            f'{value}{"" if value == label else f" (loaded as {label})"} in {summary.stored[value, label][1]} map(s)'
            for value, label in sorted(stored)
        ] or [f'{label} in {summary.seen_in[label]} map(s)' for label in strange]
        summary.problems[_without_class(summary, strange)] = seen
    elif train and nothing_left(summary):
        summary.problems[_nothing(summary)] = []
    elif train and one_answer(summary):
        summary.problems[_one_answer(summary)] = []
    elif nothing_left(summary):
        summary.warnings.append(f'no pixel has a class, so there is nothing to evaluate: {_nothing(summary)}')
    _warn(summary)


def undecided(summary: SemanticSummary) -> bool:
    """Whether the images seen so far may mislead, so that more of them have to be looked at."""
    return is_black_and_white(summary) or nothing_left(summary) or one_answer(summary)


def is_black_and_white(summary: SemanticSummary) -> bool:
    """Whether the files hold 0 and 255 and nothing else, and 255 is ignored."""
    return summary.stored_values == {0, IGNORED} and summary.ignored_label == IGNORED


def nothing_left(summary: SemanticSummary) -> bool:
    """Whether every pixel is ignored."""
    return bool(summary.loaded) and set(summary.loaded) == {summary.ignored_label}


def one_answer(summary: SemanticSummary) -> bool:
    """Whether the pixels that count all have one class, of several, and others are ignored."""
    shown = set(summary.loaded) - {summary.ignored_label}
    return len(summary.classes) > 1 and len(shown) == 1 and summary.ignored > 0


def plan_repair(values: Iterable[int], number: int) -> dict[int, int] | None:
    """The labels that stored values stand for, where there is one way to see them.

    Args:
        values: All values in the files.
        number: Number of classes; 1 counts as two, since the pixels around the class are one too.

    Returns:
        Value -> label from 0: black and white, with or without the noise of a lossy format, or as many values as
        classes, in their order, or 255 for what is not label 1; None if the values are labels already, or can be seen
        in several ways.
    """
    found, number = sorted(set(values)), max(number, 2)
    if number == 2 and found == [1, IGNORED]:
        return {1: 1, IGNORED: 0}
    if set(found) <= {*range(number), IGNORED} and found != [0, IGNORED]:
        return None
    if len(found) == number:
        return {value: label for label, value in enumerate(found)}
    dark, bright = [v for v in found if v < 64], [v for v in found if 192 <= v <= IGNORED]
    if number == 2 and len(dark) + len(bright) == len(found) and len(found) > number and dark and bright:
        return {value: int(value >= 128) for value in found}
    return None


def _black_and_white(number: int) -> str:
    text = 'all label maps hold the values 0 and 255 only, and 255 is ignored'
    if number > 2:
        return (
            f'{text}, so that one of the {number} classes is all there is to learn: make maps with the labels 0 to '
            f'{number - 1}, or name in metainfo.classes the two classes that they show and write maps of 0 and 1 with '
            f'{FIX}'
        )
    return (
        f'{text}, so that label 0 is all there is to learn: {FIX} writes maps with label 1 in the place of 255, and '
        'prints the settings that train on them'
    )


def _without_class(summary: SemanticSummary, strange: list[int]) -> str:
    """The kind of problem of labels that no class has, with what to do."""
    number, reduced = len(summary.classes), summary.reduce_zero_label
    first = 1 if reduced else 0
    ignored = '255 (and 0)' if reduced else str(summary.ignored_label)
    allowed = f'{first} to {number - 1 + first}'
    if summary.label_map:
        allowed = f'some of the {summary.label_map} that the type of the dataset has'
    if not reduced and not summary.label_map and strange == [number]:
        advice = (
            'with reduce_zero_label=False label 0 is the first class: set it to True if 0 means "no class", else name '
            f'{number + 1} classes'
        )
    elif plan_repair(summary.stored_values, number) is not None:
        advice = f'{FIX} writes maps with the labels 0 to {max(number, 2) - 1} in their order'
    else:
        advice = 'correct the maps, the classes of metainfo, or reduce_zero_label'
    return f'label values without a class ({number} classes: {allowed}; {ignored} is ignored; {advice})'


def _nothing(summary: SemanticSummary) -> str:
    values = sorted(summary.stored_values)
    held = f' (the files hold {listing(values)})' if values else ''
    text = f'every pixel of all label maps is ignored{held}: no pixel has one of the {len(summary.classes)} classes'
    if summary.label_map:
        return f'{text} {listing(summary.classes, limit=4)}; name classes in metainfo.classes that the maps show'
    if summary.reduce_zero_label and values and set(values) <= {0, IGNORED}:
        return f'{text}, since reduce_zero_label=True makes label 0 "no class"; set it to False if 0 is a class'
    return f'{text}; correct the maps, the classes of metainfo, or reduce_zero_label'


def _one_answer(summary: SemanticSummary) -> str:
    label = next(iter(set(summary.loaded) - {summary.ignored_label}))
    values = sorted(summary.stored_values)
    held = f' (the files hold {listing(values)})' if values else ''
    number = len(summary.classes)
    advice = 'give the ignored pixels a label of their own, or correct the classes of metainfo or reduce_zero_label'
    if summary.label_map:
        advice = 'name classes in metainfo.classes that the maps show'
    elif summary.reduce_zero_label and 0 in values and max(set(values) - {IGNORED}) < number:
        advice = 'reduce_zero_label=True makes label 0 "no class"; set it to False'
    elif plan_repair(values, number) is not None:
        advice = f'{FIX} writes maps with a label for each of the values'
    return (
        f'every pixel of all label maps is {summary.classes[label]!r} or ignored{held}, so that one of {number} '
        f'classes is all there is to learn: {advice}'
    )


def _warn(summary: SemanticSummary) -> None:
    number, values = len(summary.classes), summary.stored_values
    if summary.reduce_zero_label and values - {IGNORED} and 0 not in values and number not in values:
        summary.warnings.append(
            f'reduce_zero_label is True, but no pixel is 0 and none is {number}, the last class: is label 0 a class?'
        )
    empty = [name for name, pixels in zip(summary.classes, summary.pixels, strict=True) if not pixels]
    if empty and summary.images:
        summary.warnings.append(f'{len(empty)} of {number} classes are never seen: {listing(empty)}')
