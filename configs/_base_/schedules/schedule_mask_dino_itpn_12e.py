# 12 of the 50 epochs, with the falls at the same shares of the schedule.
_base_ = './schedule_mask_dino_itpn_50e.py'

max_iters = 88500
train_cfg = dict(max_iters=max_iters, val_interval=7375)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=10),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[78667, 85222], gamma=0.1),
]
