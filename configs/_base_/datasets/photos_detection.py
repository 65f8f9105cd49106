# Some photographs in COCO's layout at 320x320, evaluated on the images trained on: whether a network can learn them.
_base_ = './coco_detection.py'

image_size = (320, 320)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=_base_.meta_keys),
]
train_dataloader = dict(
    num_workers=1, sampler=dict(type='InfiniteSampler'), batch_sampler=None, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'), pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=_base_.data_root + 'annotations/instances_train2017.json')
test_evaluator = val_evaluator
