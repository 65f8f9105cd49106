"""Six steps, a checkpoint after every second one; `toy_parts` is found over PYTHONPATH."""
# ruff: noqa: C408  # written as configs are

default_scope = 'mmengine'
custom_imports = dict(imports=['toy_parts'])
model = dict(type='ToyModel')
sampler = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dict(type='ToyData'))
test_dataloader = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dict(type='ToyData'))
test_evaluator = dict(type='ToyScore')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
)
custom_hooks = [dict(type='Die')]
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
env_cfg = dict(dist_cfg=dict(backend='nccl', timeout=500))
