"""Three epochs of six steps, a checkpoint after each epoch; `fault_parts` is found over PYTHONPATH."""
# ruff: noqa: C408  # written as configs are

default_scope = 'mmengine'
custom_imports = dict(imports=['fault_parts'])
data_root = 'images'
model = dict(type='ToyNetwork')
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ToyImages', data_root=data_root),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=18)]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='Fault')]
env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
