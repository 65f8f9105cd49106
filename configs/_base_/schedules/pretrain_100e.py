# A small budget: as pretrain_1600e.py, with 100 epochs.
_base_ = './pretrain_1600e.py'

epochs = 100
train_cfg = dict(max_epochs=epochs)
param_scheduler = [_base_.warmup_lr, dict(_base_.cosine_lr, T_max=epochs - _base_.warmup, end=epochs)]
