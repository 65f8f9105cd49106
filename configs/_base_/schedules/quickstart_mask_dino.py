# The quick start's schedule for MaskDINO in mmdet.
_base_ = ['./quickstart.py', '../default_runtime.py']

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(level_embed=no_decay, label_embed=no_decay, sampling_offsets=no_decay))
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
param_scheduler = [dict(_base_.warmup_lr, end=48), dict(_base_.cosine_lr, begin=480, end=1600, T_max=1120)]
