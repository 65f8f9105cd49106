# Pre-training in small: iTPN with pixel supervision (MAE), with a decoder of the backbone's size.
_base_ = '../../../configs/quickstart/pretrain_fast-itpn-nano_shapes-mfm.py'

model = dict(
    form='pixel',
    mask_ratio=0.75,
    head=dict(width=192, depth=2, heads=6),
    teacher=dict(_delete_=True, type='mmitpn.PixelTeacher'),
)
