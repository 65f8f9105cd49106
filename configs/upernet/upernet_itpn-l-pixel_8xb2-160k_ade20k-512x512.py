# The authors' recipe for iTPN-L with pixel supervision.
_base_ = './upernet_itpn-b-pixel_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels.large),
    decode_head=dict(in_channels=_base_.head_channels.large),
    auxiliary_head=dict(in_channels=_base_.head_channels.large[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
