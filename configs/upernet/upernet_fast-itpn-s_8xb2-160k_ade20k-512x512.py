# Reconstruction: the authors published this recipe for iTPN, not for Fast-iTPN.
_base_ = './upernet_fast-itpn-b_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=_base_.channels.small),
    decode_head=dict(in_channels=_base_.head_channels.small),
    auxiliary_head=dict(in_channels=_base_.head_channels.small[2]),
)
