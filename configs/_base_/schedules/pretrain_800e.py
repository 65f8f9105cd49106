# As pretrain_1600e.py, with 800 epochs.
_base_ = './pretrain_1600e.py'

epochs = 800
train_cfg = dict(max_epochs=epochs)
param_scheduler = [_base_.warmup_lr, dict(_base_.cosine_lr, T_max=epochs - _base_.warmup, end=epochs)]
