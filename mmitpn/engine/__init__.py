"""Training: the optimizer's layer decay, checkpoints that are never half-written, and the set-up of a process."""

from mmitpn.engine.autocast import BFloat16OptimWrapper
from mmitpn.engine.checkpoint_hook import AtomicCheckpointHook, find_resumable
from mmitpn.engine.environment import setup_distributed, setup_environment, use_atomic_checkpoints
from mmitpn.engine.export_hook import ExportPretrainedHook
from mmitpn.engine.host_configs import resolve_config
from mmitpn.engine.invalid_loss_hook import StopOnInvalidLossHook
from mmitpn.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmitpn.engine.seed_hook import SeedStepHook

__all__ = [
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'ExportPretrainedHook',
    'LayerDecayOptimWrapperConstructor',
    'SeedStepHook',
    'StopOnInvalidLossHook',
    'find_resumable',
    'resolve_config',
    'setup_distributed',
    'setup_environment',
    'use_atomic_checkpoints',
]
