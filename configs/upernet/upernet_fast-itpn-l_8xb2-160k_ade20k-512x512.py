# Reconstruction: the authors published this recipe for iTPN, not for Fast-iTPN.
_base_ = './upernet_fast-itpn-b_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels.large),
    decode_head=dict(in_channels=_base_.head_channels.large),
    auxiliary_head=dict(in_channels=_base_.head_channels.large[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
