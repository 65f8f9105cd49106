"""Training with weights, gradients and optimizer states sharded among the processes (FSDP2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner.checkpoint import save_checkpoint
from torch import Tensor, nn
from torch.distributed import barrier, broadcast, is_initialized
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmitpn.checkpoint.diagnostics import some
from mmitpn.checkpoint.sharded import META, load_sharded, read_index
from mmitpn.engine.checkpointing import ShapeMismatch, load_from_local
from mmitpn.engine.resume import refuse_to_resume, require_state
from mmitpn.registry import STRATEGIES

# Suffixes of the names of classes whose weights are gathered, used and freed as one unit: blocks of the backbone and of
# the pyramid, layers of encoders and decoders, of this project and of the frameworks. All other weights belong to the
# unit of the model itself.
UNITS = ('TransformerBlock', 'PointwiseBlock', 'EncoderLayer', 'DecoderLayer')
CHECKPOINTS = ('full', 'sharded')


def is_unit(module: nn.Module) -> bool:
    """Whether the weights of a module are sharded as one unit of their own."""
    return type(module).__name__.endswith(UNITS)


@STRATEGIES.register_module()
class FSDPStrategy(DDPStrategy):
    """Strategy of mmengine's ``FlexibleRunner`` on torch's ``fully_shard``.

    Every process stores one shard of each weight, of its gradient and of the optimizer's states; the weights of a unit
    (:func:`is_unit`) are gathered while it is used. Losses are those of DistributedDataParallel. mmengine's own
    ``FSDPStrategy`` is built on torch's older class, needs a GPU, and pickles its shards.

    Args:
        checkpoints: ``'full'``: the main process writes one file, like that of any other training run, for which it
            gathers the complete model. ``'sharded'``: every process writes its shard into one folder. Weights of both
            are read by ``tools/test.py``; a training run resumes from both with any number of processes.
        reshard_after_forward: False keeps the weights of a unit gathered until the backward pass has used them:
            faster, and more memory.
        kwargs: As of mmengine's ``DDPStrategy``.

    Raises:
        ValueError: If ``checkpoints`` is unknown; or when the model is wrapped, if there is no launcher.
    """

    def __init__(self, *, checkpoints: str = 'full', reshard_after_forward: bool = True, **kwargs: Any) -> None:
        if checkpoints not in CHECKPOINTS:
            raise ValueError(f'checkpoints is {checkpoints!r}; allowed: {", ".join(map(repr, CHECKPOINTS))}')
        super().__init__(**kwargs)
        self._sharded, self._reshard = checkpoints == 'sharded', reshard_after_forward
        self._resumes = False

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not is_initialized():
            raise ValueError(
                'FSDPStrategy shards a model among processes, and there is one here without a launcher:'
                ' bash tools/dist_train.sh CONFIG GPUS'
            )
        device = get_device()
        model = self.convert_model(model).to(device)
        for value in (*model.parameters(), *model.buffers()):
            broadcast(value.data, 0)  # random initialization may differ
        mesh = init_device_mesh(device, (get_world_size(),))
        units = [module for module in model.modules() if is_unit(module)]
        for module in reversed(units):  # inner ones first
            fully_shard(module, mesh=mesh, reshard_after_forward=self._reshard)
        return fully_shard(model, mesh=mesh)

    def _options(self) -> StateDictOptions:
        return StateDictOptions(full_state_dict=not self._sharded, cpu_offload=True)

    def model_state_dict(self) -> dict[str, Tensor]:
        """Weights by name: complete on the main process, or the shards of this process."""
        return get_model_state_dict(self.model, options=self._options())

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimizer's state by the weights' names."""
        return get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=self._options())

    def load_model_state_dict(self, state_dict: dict[str, Tensor], *, strict: bool = False, **_: Any) -> None:
        """Load weights: complete ones that each process has read, or shards.

        Args:
            state_dict: Weights by name.
            strict: As in torch.
        """
        options = StateDictOptions(full_state_dict=not _is_sharded(state_dict), strict=strict)
        set_model_state_dict(self.model, state_dict, options=options)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state.

        Args:
            state_dict: As of :meth:`optim_state_dict`.

        Raises:
            ValueError: If it is of a training run without FSDP, which numbers its weights.
        """
        if any(isinstance(name, int) for name in state_dict.get('state', {})):
            raise ValueError(
                'the optimizer state is of a training run without FSDP, and has no weight names; start a new run from'
                ' the weights: --cfg-options load_from=FILE in place of --resume'
            )
        options = StateDictOptions(full_state_dict=not _is_sharded(state_dict.get('state', {})))
        set_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, state_dict, options=options)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> None:
        """Save; all processes call it.

        Args:
            filename: The file, or with ``checkpoints='sharded'`` the folder.
            save_optimizer: Include the optimizer's state.
            save_param_scheduler: Include the schedulers' state.
            extra_ckpt: Further content.
            callback: Changes the content before it is saved.
        """
        checkpoint: dict[str, Any] = {**(extra_ckpt or {}), 'state_dict': self.model_state_dict()}
        checkpoint['meta'] = {**checkpoint.get('meta', {}), 'seed': self.seed}
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            checkpoint['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        if callback is not None:
            callback(checkpoint)
        if not self._sharded:
            if is_main_process():
                save_checkpoint(checkpoint, filename)
            barrier()
            return
        tensors = {'model': checkpoint.pop('state_dict')}
        if 'optimizer' in checkpoint:
            tensors['optimizer'] = checkpoint['optimizer'].pop('state')
        if is_main_process():
            Path(filename).mkdir(parents=True, exist_ok=True)
            save_checkpoint(checkpoint, str(Path(filename, META)))
        dcp.save(tensors, checkpoint_id=filename)  # its index comes last

    def resume(self, filename: str, **options: Any) -> dict[str, Any]:
        """Load weights and the state of the training run.

        Args:
            filename: A file, or a sharded checkpoint (a folder).
            options: As in mmengine.

        Returns:
            Its further content.

        Raises:
            ValueError: If the weights or the optimizer's state are of another model.
        """
        self._resumes = True
        try:
            return super().resume(filename, **options)
        finally:
            self._resumes = False

    def load_checkpoint(
        self, filename: str, *, map_location: Any = 'cpu', callback: Callable[[dict], None] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load the weights of a file or of a sharded checkpoint.

        Args:
            filename: Either. Of a folder only the weights that fit are loaded, unless the run is resumed.
            map_location: Not used: weights are read on the CPU.
            callback: Changes what was read.
            kwargs: As in mmengine, for files.

        Returns:
            Its further content.
        """
        if not Path(filename).is_dir():
            return super().load_checkpoint(filename, map_location='cpu', callback=callback, **kwargs)
        del map_location
        sizes = {name: tuple(entry.size) for name, entry in read_index(filename).state_dict_metadata.items()}
        checkpoint = load_from_local(str(Path(filename, META)))
        options = StateDictOptions()
        tensors = {'model': get_model_state_dict(self.model, options=options)}
        if self._resumes:
            require_state(checkpoint, filename)
            if 'optimizer' in checkpoint and hasattr(self, 'optim_wrapper'):
                own = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=options)
                tensors['optimizer'] = own['state']
            refuse_to_resume(filename, _mismatches(tensors['model'], sizes, 'model'), len(tensors['model']))
            states = _mismatches(tensors.get('optimizer', {}), sizes, 'optimizer')
            refuse_to_resume(filename, states, len(sizes), optimizer=True)
        else:
            left = _mismatches(tensors['model'], sizes, 'model')
            for mismatch in left:
                del tensors['model'][mismatch.name]
            if left:
                names = some([str(mismatch) for mismatch in left])
                print_log(f'{filename}: {len(left)} weights are not loaded: {names}', 'current', logging.WARNING)
        load_sharded(tensors, filename)
        if callback is not None:
            callback({**checkpoint, 'state_dict': tensors['model']})
        self.load_model_state_dict(tensors['model'])
        if 'optimizer' in tensors:
            checkpoint['optimizer']['state'] = tensors['optimizer']
        return checkpoint


def _mismatches(tensors: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], where: str) -> list[ShapeMismatch]:
    """The tensors in nested dicts that a sharded checkpoint lacks, or has in another shape."""
    found = []
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            found += [
                ShapeMismatch(f'{name}.{one.name}', one.stored, one.own)
                for one in _mismatches(value, sizes, f'{where}.{name}')
            ]
        elif isinstance(value, Tensor) and sizes.get(f'{where}.{name}') != tuple(value.shape):
            found.append(ShapeMismatch(name, sizes.get(f'{where}.{name}'), tuple(value.shape)))
    return found


def _is_sharded(state: Any) -> bool:
    """Whether the tensors in nested dicts are shards."""
    if isinstance(state, dict):
        return any(_is_sharded(value) for value in state.values())
    return type(state).__name__ == 'DTensor'
