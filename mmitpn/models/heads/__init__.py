"""Heads. `mmitpn.DINO` takes mmdet's own ``DINOHead``, which it runs in fp32, so none is here yet."""
