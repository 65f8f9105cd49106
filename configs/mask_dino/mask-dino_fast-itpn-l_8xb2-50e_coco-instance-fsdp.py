# The same training in shards over the GPUs (FSDP2), in bf16: docs/large_models.md. Not run with this network.
_base_ = ['./mask-dino_fast-itpn-l_8xb2-50e_coco-instance.py', '../_base_/fsdp.py']

optim_wrapper = dict(type='mmitpn.BFloat16OptimWrapper')
model = dict(backbone=dict(with_cp=True))
