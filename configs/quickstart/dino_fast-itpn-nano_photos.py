# The quick start's detector on a handful of photographs in COCO's layout, trained and evaluated on the same images
# until it knows them by heart: that a network can learn them, not how good it is.
#   python projects/token_reduction_study/compare_tokens.py --task photos --photos PHOTOS/
_base_ = './dino_fast-itpn-nano_shapes.py'

max_iters = 1600
flat_until = 800
data_root = 'data/coco/'
image_size = (320, 320)

model = dict(num_queries=100, bbox_head=dict(num_classes=80), test_cfg=dict(max_per_img=100))

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
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, metainfo=None, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=data_root,
        metainfo=None,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_train2017.json')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=48),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        by_epoch=False,
        begin=flat_until,
        end=max_iters,
        T_max=max_iters - flat_until,
    ),
]
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
default_hooks = dict(checkpoint=dict(interval=400))
