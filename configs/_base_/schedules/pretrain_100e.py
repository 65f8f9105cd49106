# A small budget: 100 epochs, 10 of them warm-up; otherwise as pretrain_1600e.py.
_base_ = './pretrain_1600e.py'
epochs, warmup = 100, 10

train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs - warmup,
        eta_min=1e-5,
        by_epoch=True,
        begin=warmup,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
