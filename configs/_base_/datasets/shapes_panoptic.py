# The generated shapes of the quick start, panoptic: five shapes are things, the four textures behind them stuff.
_base_ = './shapes_detection.py'

thing_classes = _base_.metainfo.classes
stuff_classes = ('gradient', 'noise', 'stripes', 'checker')
metainfo = dict(
    classes=thing_classes + stuff_classes,
    thing_classes=thing_classes,
    stuff_classes=stuff_classes,
    palette=[
        *_base_.metainfo.palette,
        *[(150, 170, 190), (140, 120, 90), (90, 130, 140), (190, 180, 150)],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmitpn.LoadPanopticAnnotations'),
    *_base_.augmentations,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=_base_.image_size, keep_ratio=False),
    dict(type='PackDetInputs', meta_keys=(*_base_.meta_keys, 'seg_map_path', 'segments_info')),
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
