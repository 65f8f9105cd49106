"""Methods and scores that token gathering and token migration are compared with; importing them registers them.

A config uses them by ``custom_imports = dict(imports=['token_study'])``, with the folder of this project on the path.
"""

from .methods import PruneThenMerge, SemanticTokens, TokenMerging, TokenPropagation

__all__ = ['PruneThenMerge', 'SemanticTokens', 'TokenMerging', 'TokenPropagation']
