# The generated shapes of the quick start (python tools/data/make_shapes.py --out data/shapes) in ADE20K's layout,
# trained at 128x128: five shapes and the four textures behind them; label 0 (seams between textures) is ignored.
_base_ = './ade20k.py'

dataset_type = 'BaseSegDataset'
data_root = 'data/shapes/ade/ADEChallengeData2016'
image_size = (128, 128)

metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'ring', 'gradient', 'noise', 'stripes', 'checker'),
    palette=[
        *([230, 60, 60], [60, 120, 240], [250, 190, 30], [170, 70, 220], [40, 200, 130]),
        *([150, 170, 190], [140, 120, 90], [90, 130, 140], [190, 180, 150]),
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

shapes = dict(type=dataset_type, data_root=data_root, metainfo=metainfo, reduce_zero_label=True)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(shapes, pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader
