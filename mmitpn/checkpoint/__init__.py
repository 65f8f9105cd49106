"""Checkpoints: which file is this, how its weights are named here, and what was loaded."""

from mmitpn.checkpoint.convert import to_authors, to_ours
from mmitpn.checkpoint.io import read_checkpoint
from mmitpn.checkpoint.layouts import FileInfo, identify
from mmitpn.checkpoint.load import load_pretrained
from mmitpn.checkpoint.module import PretrainedModule, QuietInit
from mmitpn.checkpoint.report import LoadReport

__all__ = [
    'FileInfo',
    'LoadReport',
    'PretrainedModule',
    'QuietInit',
    'identify',
    'load_pretrained',
    'read_checkpoint',
    'to_authors',
    'to_ours',
]
