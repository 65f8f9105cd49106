# The quick start's MaskDINO on a handful of photographs in COCO's layout, trained and evaluated on the same images
# until it knows them by heart: that the network can learn masks of real objects, not how good it is.
#   python tools/train.py configs/quickstart/mask-dino_fast-itpn-nano_photos.py
_base_ = './mask-dino_fast-itpn-nano_shapes-instance.py'

max_iters = 1500
flat_until = 750
data_root = 'data/coco/'
image_size = (320, 320)

model = dict(
    panoptic_head=dict(num_things_classes=80, num_queries=100, denoising=dict(num_queries=60)),
    train_cfg=dict(num_points=2048),
    test_cfg=dict(max_per_image=100),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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

train_cfg = dict(max_iters=max_iters, val_interval=300)
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
default_hooks = dict(checkpoint=dict(interval=300))
