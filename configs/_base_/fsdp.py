# Weights, gradients and optimizer states in shards among the processes, for networks that one GPU does not hold
# (docs/large_models.md). Give optim_wrapper the type mmitpn.BFloat16OptimWrapper beside it: the weights stay fp32.
runner_type = 'FlexibleRunner'
strategy = dict(type='mmitpn.FSDPStrategy', checkpoints='sharded')
