"""Training: layer-wise learning-rate decay, sharded training, safe and exactly resumable runs, command lines."""

from mmitpn.engine.amp import BFloat16OptimWrapper
from mmitpn.engine.checkpointing import (
    AtomicCheckpointHook,
    ExportPretrainedHook,
    WholeWeightsHook,
    use_atomic_checkpoints,
)
from mmitpn.engine.config_utils import resolve_config
from mmitpn.engine.fsdp import FSDPStrategy
from mmitpn.engine.hooks import StopOnInvalidLossHook, StopOnSignalHook, TrainingStopped, outlast_stop_signal
from mmitpn.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmitpn.engine.resume import (
    CheckResumeHook,
    ResumableEpochLoop,
    SeedStepHook,
    enable_exact_resume,
    find_latest_checkpoint,
)
from mmitpn.engine.runtime import setup_distributed, setup_environment

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
    'WholeWeightsHook',
    'enable_exact_resume',
    'find_latest_checkpoint',
    'outlast_stop_signal',
    'resolve_config',
    'setup_distributed',
    'setup_environment',
    'use_atomic_checkpoints',
]
