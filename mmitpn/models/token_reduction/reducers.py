"""The registry of token reducers, by the names that configs use."""

from __future__ import annotations

from .migration import TokenMigration, TokenReducer

REDUCERS: dict[str, type[TokenReducer]] = {}


def register_reducer(cls: type[TokenReducer]) -> type[TokenReducer]:
    """Make a reducer available as ``token_migration=dict(type=NAME)``, by the name of its class.

    Raises:
        ValueError: If the name is taken.
    """
    if cls.__name__ in REDUCERS:
        raise ValueError(f'a token reducer named {cls.__name__!r} is registered already; choose another name')
    REDUCERS[cls.__name__] = cls
    return cls


register_reducer(TokenMigration)
