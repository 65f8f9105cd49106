# iTPN's published 3x recipe on COCO: 36 epochs, steps at 27 and 33. One of the authors' 3x files has the 1x steps.
_base_ = './schedule_itpn_1x.py'

train_cfg = dict(max_epochs=36)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
param_scheduler = [_base_.warmup_lr, dict(_base_.step_lr, end=36, milestones=[27, 33])]
