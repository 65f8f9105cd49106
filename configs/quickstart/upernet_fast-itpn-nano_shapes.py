# The quick start for segmentation: UperNet on a nano Fast-iTPN, trained on generated shapes on two CPU cores.
# Backbone and pyramid start from a checkpoint made on other generated shapes by the same segmentor
# (upernet_fast-itpn-nano_shapes-pretrain.py).
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/default_runtime_mmseg.py',
]

max_iters = 800
width = 128
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)
# Four fifths of the pixels are textures, which are easy: the shapes count for more.
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=[2.0] * 5 + [0.5] * 4)
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/fast-itpn-nano_shapes-seg.pth')

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    neck=dict(in_channels=(48, 96, 192), out_channels=width, weight_init='xavier', init_cfg=pretrained),
    decode_head=dict(
        in_channels=[width + 48, width + 96, width + 192, width + 192],
        channels=64,
        num_classes=9,
        norm_cfg=norm_cfg,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        in_channels=width + 192, channels=64, num_classes=9, norm_cfg=norm_cfg, loss_decode=dict(loss, loss_weight=0.4)
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.85),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=30, end=max_iters, T_max=max_iters - 30),
]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1))
