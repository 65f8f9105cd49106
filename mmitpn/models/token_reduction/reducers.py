"""The ways to work with fewer tokens, by the names that configs use."""

from __future__ import annotations

from .merging import TokenMerging
from .migration import TokenMigration, TokenReducer
from .propagation import TokenPropagation
from .semantic import SemanticTokens

REDUCERS: dict[str, type[TokenReducer]] = {
    cls.__name__: cls for cls in (TokenMigration, TokenMerging, TokenPropagation, SemanticTokens)
}
