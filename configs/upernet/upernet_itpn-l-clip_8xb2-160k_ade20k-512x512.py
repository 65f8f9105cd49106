# The authors' recipe for iTPN-L with CLIP supervision.
# One pyramid block per level, as in the released CLIP weights; the authors' file has two, of which one starts fresh.
_base_ = './upernet_itpn-l-pixel_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(layer_scale_init_value=0.1), neck=dict(depth=1))
