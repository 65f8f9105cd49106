"""Exported networks: what is in a file, and how it predicts. Works without mmcv, mmdet, mmseg and mmpretrain."""
