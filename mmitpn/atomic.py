"""Atomic writing of files, for the engine, the datasets and the tools: a file is complete or it does not exist.

The content is written beside the final name, then renamed onto it. Only the standard library is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX = '.mmitpn-tmp'


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file so that a kill or a crash at any moment leaves the old content or the new one, never a part.

    Args:
        path: Final name; its folder is created if it is missing. A link is followed.
        content: The complete new content.

    Raises:
        OSError: If the disk is full or not writable; the old file is untouched then.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing to its file
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers from sharing a temporary file.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}{SUFFIX}')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot sync folders; the rename itself is done
        pass
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Remove the temporary files of writers that were killed.

    Args:
        folder: Folder to search, without its sub-folders; may be missing.

    Returns:
        The files that were removed.
    """
    leftovers = sorted(Path(folder).glob(f'.*{SUFFIX}'))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers
