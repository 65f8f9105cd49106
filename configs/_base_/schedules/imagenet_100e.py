# The same for T and S: 100 epochs, 5 of them warm-up.
_base_ = './imagenet_20e.py'

epochs, warmup = 100, 5

train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, T_max=epochs - warmup, begin=warmup, end=epochs),
]
