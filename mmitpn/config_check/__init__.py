"""Checks before a training run starts, each with a sentence that says what was seen, what is allowed and what to do."""

from .coco import CocoSummary, check_coco_json
from .config import check_config

__all__ = ['CocoSummary', 'check_coco_json', 'check_config']
