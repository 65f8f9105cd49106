"""What pre-training leaves for detectors and segmentors: one file with backbone and pyramid."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmitpn.engine.atomic import write_atomic
from mmitpn.registry import HOOKS

PARTS = ('backbone.', 'neck.')


@HOOKS.register_module()
class ExportPretrainedHook(Hook):
    """Writes backbone and pyramid of the finished run, and nothing else, into the work dir.

    ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` of backbone and neck take the file, as does
    ``tools/train.py --pretrained``. Averaged weights are written where the run averages them (mmengine's ``EMAHook``).

    Args:
        filename: Name of the file.
    """

    priority = 'VERY_LOW'

    def __init__(self, filename: str = 'pretrained.pth') -> None:
        self.filename = filename

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write the file.

        Args:
            runner: The runner of the training process.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        content = {'meta': {}, 'state_dict': model.state_dict()}
        runner.call_hook('before_save_checkpoint', checkpoint=content)  # EMAHook puts the average in its place
        state = {name: value.detach().cpu() for name, value in content['state_dict'].items() if name.startswith(PARTS)}
        path = Path(runner.work_dir) / self.filename
        buffer = BytesIO()
        torch.save({'state_dict': state}, buffer)
        write_atomic(path, buffer.getvalue())
        print_log(f'backbone and pyramid: {path} ({len(state)} weights)', 'current')
