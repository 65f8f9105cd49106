# As schedule_mask_dino_itpn_50e.py, with 12 epochs; the steps are at the same fractions of the schedule.
_base_ = './schedule_mask_dino_itpn_50e.py'

max_iters = 88500
train_cfg = dict(max_iters=max_iters, val_interval=7375)
param_scheduler = [_base_.warmup_lr, dict(_base_.step_lr, end=max_iters, milestones=[78667, 85222])]
