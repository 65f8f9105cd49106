# ImageNet-1K without labels at 128 pixels, masked at random in the model; 256 images per GPU.
_base_ = './imagenet_pretrain.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs', meta_keys=['img_path']),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
