# Weights, gradients and optimizer states sharded over the processes, for networks that do not fit on one GPU
# (docs/large_models.md). Give optim_wrapper the type mmitpn.BFloat16OptimWrapper beside it: the weights stay fp32.
runner_type = 'FlexibleRunner'
strategy = dict(type='mmitpn.FSDPStrategy', checkpoints='sharded')
