# iTPN's published 3x recipe on COCO: 36 epochs, steps at 27 and 33. One of the authors' 3x files has the 1x steps.
_base_ = './schedule_itpn_1x.py'

train_cfg = dict(max_epochs=36)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
