# iTPN's pixel pre-training: 1.5e-4 for every 256 images per step, 40 epochs of warm-up, cosine to 0 (MAE's).
_base_ = './pretrain_1600e.py'
epochs, warmup = 1600, 40

train_cfg = dict(max_epochs=epochs)
optim_wrapper = dict(optimizer=dict(lr=2.4e-3, betas=(0.9, 0.95)), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=epochs - warmup,
        eta_min=0.0,
        by_epoch=True,
        begin=warmup,
        end=epochs,
        convert_to_iter_based=True,
    ),
]
