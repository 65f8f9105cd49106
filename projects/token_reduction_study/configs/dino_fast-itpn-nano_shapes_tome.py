# The quick start's detector with ToMe between gathering tokens; run with PYTHONPATH=projects/token_reduction_study
_base_ = '../../../configs/quickstart/dino_fast-itpn-nano_shapes.py'
custom_imports = dict(imports=['token_study'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        token_migration=dict(type='TokenMerging', keep_ratio=0.5),
        token_gathering=dict(window_size=4, num_tokens=1),
    )
)
