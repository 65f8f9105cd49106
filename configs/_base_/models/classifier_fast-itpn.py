# Fast-iTPN as an ImageNet classifier: mean pooling, then the norm (fc_norm), as in the authors' fine-tuned files.
_base_ = './itpn_channels.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmitpn.FastITPN', arch='base', img_size=224, out_indices=(2,), drop_path_rate=0.1, final_norm=False
    ),
    head=dict(
        type='mmitpn.MeanPoolClsHead',
        num_classes=1000,
        in_channels=_base_.channels.base[-1],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
data_preprocessor = dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
