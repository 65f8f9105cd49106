"""Training: the optimizer's layer decay, runs that nothing is lost of, and the set-up of a process."""

from mmitpn.engine.autocast import BFloat16OptimWrapper
from mmitpn.engine.checkpoint_hook import AtomicCheckpointHook, find_resumable
from mmitpn.engine.environment import setup_distributed, setup_environment, use_atomic_checkpoints
from mmitpn.engine.epoch_loop import ResumableEpochLoop
from mmitpn.engine.export_hook import ExportPretrainedHook
from mmitpn.engine.fault_tolerance import use_fault_tolerance
from mmitpn.engine.fsdp import FSDPStrategy
from mmitpn.engine.host_configs import resolve_config
from mmitpn.engine.invalid_loss_hook import StopOnInvalidLossHook
from mmitpn.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmitpn.engine.resume_hook import CheckResumeHook
from mmitpn.engine.seed_hook import SeedStepHook
from mmitpn.engine.signal_hook import StopOnSignalHook, TrainingStopped, outlast_stop_signal

__all__ = [
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'CheckResumeHook',
    'ExportPretrainedHook',
    'FSDPStrategy',
    'LayerDecayOptimWrapperConstructor',
    'ResumableEpochLoop',
    'SeedStepHook',
    'StopOnInvalidLossHook',
    'StopOnSignalHook',
    'TrainingStopped',
    'find_resumable',
    'outlast_stop_signal',
    'resolve_config',
    'setup_distributed',
    'setup_environment',
    'use_atomic_checkpoints',
    'use_fault_tolerance',
]
