# The generated shapes of the quick start (python tools/data/make_shapes.py --out data/shapes), trained at 128x128.
# Images without objects are trained on too, as in coco_detection.py.
_base_ = './coco_detection.py'

data_root = 'data/shapes/coco/'
image_size = (128, 128)

metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'ring'),
    palette=[(230, 60, 60), (60, 120, 240), (250, 190, 30), (170, 70, 220), (40, 200, 130)],
)

augmentations = [
    # Orientation and color of a shape do not matter: rotations and reflections, swapped channels, other light.
    dict(type='mmitpn.RandomTranspose', prob=0.5),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='PackDetInputs'),
]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    *augmentations,
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=_base_.meta_keys),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
