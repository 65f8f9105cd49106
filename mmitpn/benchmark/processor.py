"""The instructions of a processor that decide how fast int8 and bf16 are."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# What people call an extension -> its flags in /proc/cpuinfo (and, below, in macOS's sysctl); one of them is enough.
X86: Mapping[str, tuple[str, ...]] = {
    'AVX2': ('avx2',),
    'AVX-512': ('avx512f',),
    'VNNI': ('avx512_vnni', 'avx_vnni'),
    'AMX': ('amx_tile',),
    'bf16': ('avx512_bf16', 'amx_bf16'),
}
ARM: Mapping[str, tuple[str, ...]] = {
    'NEON': ('asimd', 'advsimd'),
    'dot product': ('asimddp', 'feat_dotprod'),
    'int8 matrix product': ('i8mm', 'feat_i8mm'),
    'bf16': ('bf16', 'feat_bf16'),
    'SVE': ('sve',),
}


@dataclass(frozen=True)
class Instructions:
    """Extensions of the instruction set.

    Attributes:
        present: Those that the processor has, of ``X86`` or ``ARM``.
        absent: Those of the same list that it lacks.
    """

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``AVX2; not AVX-512, VNNI, AMX, bf16``."""
        if not self.present and not self.absent:
            return 'instructions unknown'
        absent = f'; not {", ".join(self.absent)}' if self.absent else ''
        return (', '.join(self.present) or 'none of the known extensions') + absent


def find_instructions() -> Instructions:
    """The instructions of this processor, from ``/proc/cpuinfo`` or ``sysctl``; empty where neither tells."""
    return name_instructions(_flags(), machine=platform.machine())


def name_instructions(flags: Iterable[str], *, machine: str) -> Instructions:
    """Name what the flags of a processor mean.

    Args:
        flags: As ``/proc/cpuinfo`` writes them (``avx512_vnni``, ``asimddp``), or macOS's ``sysctl``.
        machine: As of :func:`platform.machine`.

    Returns:
        The instructions; empty without flags.
    """
    found = {flag.lower() for flag in flags}
    if not found:
        return Instructions()
    known = ARM if machine.lower().startswith(('arm', 'aarch')) else X86
    present = tuple(name for name, names in known.items() if found.intersection(names))
    return Instructions(present, tuple(name for name in known if name not in present))


def _flags() -> set[str]:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding='utf-8', errors='replace').splitlines()
        return {
            flag
            for line in lines
            if line.lower().startswith(('flags', 'features'))
            for flag in line.split(':')[1].split()
        }
    if sys.platform != 'darwin':
        return set()
    listed = subprocess.run(
        ['/usr/sbin/sysctl', 'machdep.cpu', 'hw.optional'], capture_output=True, text=True, check=False
    )
    flags = set()
    for line in listed.stdout.splitlines():
        key, _, value = line.partition(':')
        if (
            key.startswith('hw.optional') and value.strip() == '1'
        ):  # hw.optional.arm.FEAT_DotProd: 1, hw.optional.avx2_0: 1
            flags.add(key.rpartition('.')[2].removesuffix('_0').lower())
    return flags
