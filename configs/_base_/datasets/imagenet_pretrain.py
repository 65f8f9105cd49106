# ImageNet-1K without labels, 224 pixels, masked by blocks: 75 of 196 patches, at least 16 a block (Fast-iTPN's recipe).
# 64 images per GPU.
data_root = 'data/imagenet'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='BEiTMaskGenerator', input_size=(14, 14), num_masking_patches=75, min_num_patches=16),
    dict(type='PackInputs', algorithm_keys=['mask'], meta_keys=['img_path']),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
)
