# The same training in shards over the GPUs (FSDP2), in bf16: docs/large_models.md. Not run with this network.
_base_ = ['./dino-4scale_fast-itpn-l_8xb2-12e_coco.py', '../_base_/fsdp.py']

optim_wrapper = dict(type='mmitpn.BFloat16OptimWrapper')
model = dict(encoder=dict(with_cp=True), decoder=dict(with_cp=True))
