"""What the checks of the doctor find, and how they look."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Problem:
    """Something that keeps this project from working.

    Args:
        says: What was seen, and what is needed.
        mend: Command that mends it.
    """

    says: str
    mend: str


@dataclass
class Diagnosis:
    """What was found.

    Args:
        stack: The stack that the commands are for.
        rows: Rows of the table: name, version, note.
        problems: What is broken.
        remarks: What is slower or unused, but breaks nothing.
    """

    stack: str = 'onedl'
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)

    def row(self, name: str, version_: str | None, note: str = '') -> None:
        """Add a row; without a version it has a dash."""
        self.rows.append((name, version_ or '-', note))

    def problem(self, says: str, mend: str) -> None:
        """Add a problem, once."""
        if Problem(says, mend) not in self.problems:
            self.problems.append(Problem(says, mend))

    def remark(self, says: str, mend: str) -> None:
        """Add a remark."""
        self.remarks.append(Problem(says, mend))


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def number(text: str | None) -> tuple[int, ...]:
    """Turn '2.9.1+cu128' into (2, 9, 1), and None into ()."""
    return tuple(int(part) for part in re.findall(r'\d+', (text or '').partition('+')[0])[:3])


def try_import(name: str) -> Exception | None:
    """Import a module; return None, or what it raised."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  a broken package raises anything, and the others are still to be seen
        return error
    if getattr(module, '__file__', None) is None:  # Python takes a folder without __init__.py for a package too
        return ImportError(f"module '{name}' has lost its files", name=name)
    return None


def one_line(error: Exception) -> str:
    """Return the kind and the message of an error in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
