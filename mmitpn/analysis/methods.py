"""The ways to work with fewer tokens that are compared, by name."""

from __future__ import annotations

from typing import Any

# name -> (type of token_migration or None, whether with token_gathering), in the order of a table
METHODS: dict[str, tuple[str | None, bool]] = {
    'global': (None, False),
    'gathering': (None, True),
    'migration': ('TokenMigration', False),
    'gathering+migration': ('TokenMigration', True),
    'gathering+ToMe': ('TokenMerging', True),
    'gathering+GTP': ('TokenPropagation', True),
    'gathering+STViT-R': ('SemanticTokens', True),
}


def drops_tokens(method: str) -> bool:
    """Whether a share of the tokens to keep belongs to a method."""
    return METHODS[method][0] is not None


def backbone_settings(method: str, *, keep_ratio: float = 0.5, **gathering: Any) -> dict[str, Any]:
    """What a FastITPN is given for a method.

    Args:
        method: A name of ``METHODS``.
        keep_ratio: Share of the tokens that stay, where the method drops some.
        **gathering: Settings of token gathering, where the method has it.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f'unknown method {method!r}; allowed: {", ".join(map(repr, METHODS))}')
    kind, gathers = METHODS[method]
    settings: dict[str, Any] = {}
    if kind is not None:
        settings['token_migration'] = {'type': kind, 'keep_ratio': keep_ratio}
    if gathers:
        settings['token_gathering'] = gathering
    return settings
