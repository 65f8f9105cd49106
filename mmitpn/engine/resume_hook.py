"""What is compared before a training run takes the weights and the optimizer's state of a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmitpn.engine.checkpoint_loader import require_state
from mmitpn.engine.fit import compare_optimizer, compare_weights, refuse_to_resume
from mmitpn.registry import HOOKS


@HOOKS.register_module()
class CheckResumeHook(Hook):
    """Refuses to resume a training run from a checkpoint of another model or another optimizer.

    mmengine loads the weights whose shape fits and logs the others, such as class layers of another number of classes;
    then it takes the optimizer's state as it is. A run that only starts from weights (``load_from``) may take some of
    them; where it takes none, a warning is logged.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which takes what is loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes.

        Args:
            runner: The runner, with model and optimizer built.
            checkpoint: What the file holds; raw weights by name are put into its ``'state_dict'``, where hooks and
                strategies of mmengine look for them.

        Raises:
            ValueError: If the run is resumed, and a parameter is missing or has another shape, the optimizer's state
                does not fit, or there is no state of a training run.
        """
        source = runner._load_from or 'the checkpoint'
        if 'state_dict' not in checkpoint:
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        wrong, total = compare_weights(runner.model, checkpoint)
        if not runner._resume:
            if total and len(wrong) == total:
                print_log(
                    f'load_from: none of the {total} weights of the model are in {source}; released files of backbones'
                    ' go by --pretrained',
                    'current',
                    logging.WARNING,
                )
            return
        require_state(checkpoint, source)
        refuse_to_resume(source, wrong, total)
        if 'optimizer' not in checkpoint:
            print_log(f'{source} holds no optimizer state: the optimizer starts afresh', 'current', logging.WARNING)
        elif hasattr(runner.optim_wrapper, 'state_dict'):
            problems = compare_optimizer(runner.model, runner.optim_wrapper, checkpoint['optimizer'])
            refuse_to_resume(source, problems, total, optimizer=True)
