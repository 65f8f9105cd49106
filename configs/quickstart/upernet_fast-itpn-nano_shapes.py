# The quick start for segmentation: UperNet on a nano Fast-iTPN, trained on generated shapes on two CPU cores.
# Backbone and pyramid start from a checkpoint made on other generated shapes by the same segmentor
# (upernet_fast-itpn-nano_shapes-pretrain.py).
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/schedules/quickstart.py',
    '../_base_/default_runtime_mmseg.py',
]

width = 128
# The pyramid's channels and the backbone's, at strides 4, 8, 16, 32.
head_channels = [width + channels for channels in (*_base_.channels.nano, _base_.channels.nano[-1])]
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)
# Four fifths of the pixels are textures, which are easy: the shapes count for more.
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=[2.0] * 5 + [0.5] * 4)
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/fast-itpn-nano_shapes-seg.pth')

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    neck=dict(in_channels=_base_.channels.nano, out_channels=width, weight_init='xavier', init_cfg=pretrained),
    decode_head=dict(
        in_channels=head_channels,
        channels=64,
        num_classes=9,
        norm_cfg=norm_cfg,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        in_channels=head_channels[2],
        channels=64,
        num_classes=9,
        norm_cfg=norm_cfg,
        loss_decode=dict(loss, loss_weight=0.4),
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)

max_iters, flat_until = 800, 30
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
param_scheduler = [
    dict(_base_.warmup_lr, end=30),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1))
