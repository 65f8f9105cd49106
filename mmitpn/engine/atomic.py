"""Files that are either whole or not there: written beside the final name, then renamed onto it."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

SUFFIX = '.mmitpn-tmp'


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file so that a kill or a crash at any moment leaves the old content or the new one, never a part.

    Args:
        path: Final name; its folder is made when missing.
        content: All of the new content.

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
    """Make a rename survive a power cut, where the file system has such a thing."""
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
    """Remove what killed writers left in a folder.

    Args:
        folder: Folder to look into, not its sub-folders; may be missing.

    Returns:
        The files removed.
    """
    leftovers = sorted(Path(folder).glob(f'.*{SUFFIX}'))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with whole files only; mmengine writes its checkpoints through it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file.

        Args:
            obj: All of the new content.
            filepath: Final name of the file.
        """
        write_atomic(filepath, obj)


def register_atomic_backend() -> None:
    """Make mmengine write local files whole from now on, in this process."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
