# The authors' recipe for ImageNet-1K: Fast-iTPN-S at 384, 100 epochs. Paper: 86.95 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(
    backbone=dict(arch='small', img_size=384, drop_path_rate=0.1),
    head=dict(in_channels=384),
)

# The whole image is tested: no border is cut off at the larger sizes.
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].scale = 384
test_pipeline[1:3] = [dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
