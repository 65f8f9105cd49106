# DINO on a nano Fast-iTPN, for the quick start's shapes at 128x128. Backbone and pyramid start from a checkpoint
# trained on other generated shapes (quickstart/dino_fast-itpn-nano_shapes-pretrain.py).
_base_ = './dino_fast-itpn.py'

width = 128
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/../../quickstart/fast-itpn-nano_shapes.pth')

model = dict(
    num_queries=80,
    num_feature_levels=3,
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    # Strides 8, 16, 32: at 128x128 the 1024 positions of stride 4 would cost more than they give.
    neck=dict(
        in_channels=_base_.channels.nano,
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
