# The generated shapes of the quick start, panoptic: five shapes are things, the four textures behind them stuff.
_base_ = './shapes_detection.py'

data_root = 'data/shapes/coco/'
image_size = (128, 128)
thing_classes = ('circle', 'square', 'triangle', 'star', 'ring')
stuff_classes = ('gradient', 'noise', 'stripes', 'checker')
metainfo = dict(
    classes=thing_classes + stuff_classes,
    thing_classes=thing_classes,
    stuff_classes=stuff_classes,
    palette=[
        *[(230, 60, 60), (60, 120, 240), (250, 190, 30), (170, 70, 220), (40, 200, 130)],
        *[(150, 170, 190), (140, 120, 90), (90, 130, 140), (190, 180, 150)],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmitpn.LoadPanopticAnnotations'),
    dict(type='mmitpn.RandomTranspose', prob=0.5),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(
        type='PackDetInputs',
        meta_keys=(
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            *('seg_map_path', 'segments_info'),
        ),
    ),
]
train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        metainfo=metainfo,
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        metainfo=metainfo,
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmitpn.PanopticMetric')
test_evaluator = val_evaluator
