"""The operators of ``mmcv._ext`` in PyTorch and torchvision, so that mmcv needs no compiled extension.

``python -m mmitpn.ops install`` makes an installed mmcv use them; :mod:`mmitpn.ops.extension` has all of their names.
Nothing here imports mmcv or mmengine, and importing this package imports nothing else.
"""
