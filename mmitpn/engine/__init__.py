"""Training: the optimizer's layer decay, checkpoints that are never half-written, and the set-up of a process."""

from mmitpn.engine.autocast import BFloat16OptimWrapper
from mmitpn.engine.checkpoint_hook import AtomicCheckpointHook, find_resumable
from mmitpn.engine.environment import setup_distributed, setup_environment, use_atomic_checkpoints
from mmitpn.engine.host_configs import resolve_config
from mmitpn.engine.layer_decay import LayerDecayOptimWrapperConstructor

__all__ = [
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'LayerDecayOptimWrapperConstructor',
    'find_resumable',
    'resolve_config',
    'setup_distributed',
    'setup_environment',
    'use_atomic_checkpoints',
]
