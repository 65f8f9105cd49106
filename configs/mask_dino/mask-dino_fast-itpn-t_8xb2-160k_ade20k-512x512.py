# Reconstruction: MaskDINO's published ADE20K recipe of R50, on Fast-iTPN; the paper's own is unpublished.
_base_ = [
    '../_base_/models/mask_dino_ade20k_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_mask_dino_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=_base_.channels.tiny))
optim_wrapper = dict(
    constructor='mmitpn.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, decay_rate=0.9)
)
