"""The sizes of the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# depths: blocks at stride 4, 8 and 16. embed_dim: channels at stride 16; half and a quarter of them at 8 and 4.
# nano is ours, for the quick start and tests; the others are the published ones.
ARCHS: dict[str, dict] = {
    'nano': {'depths': (1, 1, 4), 'embed_dim': 192, 'num_heads': 3},
    'tiny': {'depths': (1, 1, 12), 'embed_dim': 384, 'num_heads': 6},
    'small': {'depths': (2, 2, 20), 'embed_dim': 384, 'num_heads': 6},
    'base': {'depths': (3, 3, 24), 'embed_dim': 512, 'num_heads': 8},
    'large': {'depths': (2, 2, 40), 'embed_dim': 768, 'num_heads': 12},
}
_FIELDS = ('depths', 'embed_dim', 'num_heads')


@dataclass(frozen=True)
class Arch:
    """Size of a network: blocks of the three stages, channels and heads of the main one."""

    depths: tuple[int, int, int]
    embed_dim: int
    num_heads: int

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels at strides 4, 8 and 16."""
        return self.embed_dim // 4, self.embed_dim // 2, self.embed_dim


def resolve_arch(arch: str | Mapping) -> Arch:
    """Turn the ``arch`` of a config into checked sizes.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` (three numbers of blocks), ``embed_dim`` and ``num_heads``.

    Raises:
        ValueError: If the name or a field is unknown, missing or impossible.
        TypeError: If ``arch`` is neither a string nor a dict.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}; allowed: {", ".join(map(repr, ARCHS))}, or a dict of {_FIELDS}')
        arch = ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch is {arch!r} ({type(arch).__name__}); give a name ({", ".join(ARCHS)}) or a dict of {_FIELDS}'
        )
    if set(arch) != set(_FIELDS):
        raise ValueError(f'arch has the fields {sorted(arch)}; it needs exactly {sorted(_FIELDS)}')
    depths, embed_dim, num_heads = arch['depths'], arch['embed_dim'], arch['num_heads']
    if (
        not isinstance(depths, Sequence)
        or len(depths) != 3
        or not all(isinstance(depth, int) and depth >= 0 for depth in depths)
        or depths[2] < 1
    ):
        raise ValueError(
            f'arch depths are {depths!r}; give three numbers of blocks (stride 4, 8, 16), the last at least 1'
        )
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f'arch num_heads is {num_heads!r}; give a whole number of at least 1')
    if not isinstance(embed_dim, int) or embed_dim < 4 or embed_dim % 4 or embed_dim % num_heads:
        raise ValueError(f'arch embed_dim is {embed_dim!r}; give a multiple of 4 and of num_heads ({num_heads})')
    return Arch(tuple(depths), embed_dim, num_heads)
