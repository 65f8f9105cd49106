# The quick start's schedule for the detector.
_base_ = ['./quickstart.py', '../default_runtime.py']

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            level_embed=no_decay, query_embedding=no_decay, label_embedding=no_decay, sampling_offsets=no_decay
        )
    )
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
