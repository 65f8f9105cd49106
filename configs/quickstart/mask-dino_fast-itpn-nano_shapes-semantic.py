# The quick start for semantic segmentation with MaskDINO in mmseg, on a nano Fast-iTPN.
_base_ = [
    '../_base_/models/mask_dino_ade20k_fast-itpn.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/schedules/quickstart.py',
    '../_base_/default_runtime_mmseg.py',
]

width = 128
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/fast-itpn-nano_shapes-seg.pth')

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    neck=dict(
        in_channels=_base_.channels.nano,
        out_channels=width,
        extra_pool='avg',
        weight_init='xavier',
        init_cfg=pretrained,
    ),
    decode_head=dict(
        in_channels=[width] * 4,
        num_classes=9,
        feat_channels=width,
        out_channels=width,
        num_queries=40,
        pixel_decoder=dict(num_layers=1, feedforward_channels=512),
        decoder=dict(num_layers=2, feedforward_channels=512),
        denoising=dict(num_queries=20),
        train_cfg=dict(num_points=1024),
    ),
)

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(level_embed=no_decay, label_embed=no_decay, query_content=no_decay, query_boxes=no_decay)
    )
)

max_iters, flat_until = 1600, 30
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
param_scheduler = [
    dict(_base_.warmup_lr, end=30),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1))
