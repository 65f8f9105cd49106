# iTPN's pixel pre-training: 1.5e-4 for every 256 images per step, 40 epochs of warm-up, cosine to 0 (MAE's).
_base_ = './pretrain_1600e.py'

epochs, warmup = 1600, 40

optim_wrapper = dict(optimizer=dict(lr=2.4e-3, betas=(0.9, 0.95)), clip_grad=None)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, eta_min=0.0, T_max=epochs - warmup, begin=warmup, end=epochs),
]
