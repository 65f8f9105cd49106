"""The registry of token reducers, by the names that configs use."""

from __future__ import annotations

from .migration import TokenMigration, TokenReducer

REDUCERS: dict[str, type[TokenReducer]] = {'TokenMigration': TokenMigration}
"""Open to others: ``REDUCERS['MyReducer'] = MyReducer`` allows ``token_migration=dict(type='MyReducer')``."""
