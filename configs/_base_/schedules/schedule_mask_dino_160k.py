# MaskDINO's published schedule on ADE20K (R50): 160k iterations of 16 images, steps at 135k and 150k, fp32.
_base_ = './schedule_mask_dino_50e.py'

max_iters = 160000
train_cfg = dict(max_iters=max_iters, val_interval=16000)
param_scheduler = [_base_.warmup_lr, dict(_base_.step_lr, end=max_iters, milestones=[135000, 150000])]
