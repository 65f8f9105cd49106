# The quick start: DINO on a nano Fast-iTPN, trained on generated shapes on two CPU cores in minutes. Backbone and
# pyramid start from a checkpoint made on other generated shapes (dino_fast-itpn-nano_shapes-pretrain.py).
_base_ = [
    '../_base_/models/dino_fast-itpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/default_runtime.py',
]

max_iters = 920
width = 128
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/fast-itpn-nano_shapes.pth')

model = dict(
    num_queries=80,
    num_feature_levels=3,
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    # Strides 8, 16, 32: at 128x128 the 1024 places of stride 4 would cost more than they give.
    neck=dict(
        in_channels=(48, 96, 192),
        out_channels=width,
        num_outs=3,
        start_level=1,
        weight_init='xavier',
        init_cfg=pretrained,
    ),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=width, num_levels=3), ffn_cfg=dict(embed_dims=width, feedforward_channels=512)
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=width),
            cross_attn_cfg=dict(embed_dims=width, num_levels=3),
            ffn_cfg=dict(embed_dims=width, feedforward_channels=512),
        ),
    ),
    positional_encoding=dict(num_feats=width // 2),
    bbox_head=dict(num_classes=5, embed_dims=width, loss_cls=dict(loss_weight=2.0)),
    dn_cfg=dict(box_noise_scale=0.4, group_cfg=dict(num_dn_queries=30)),
    test_cfg=dict(max_per_img=80),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

train_dataloader = dict(sampler=dict(type='InfiniteSampler'), batch_sampler=None)

# What the checkpoint knows is kept by a gentle layer decay, and the rate falls early: only the head is new. A clip of
# 0.1, the usual one of DINO, would hold the first thousand steps back.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=0.85,
        custom_keys=dict(
            level_embed=dict(decay_mult=0.0),
            query_embedding=dict(decay_mult=0.0),
            label_embedding=dict(decay_mult=0.0),
            sampling_offsets=dict(decay_mult=0.0),
        ),
    ),
)
warmup = int(0.03 * max_iters)
flat_until = int(0.3 * max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        by_epoch=False,
        begin=flat_until,
        end=max_iters,
        T_max=max_iters - flat_until,
    ),
]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
