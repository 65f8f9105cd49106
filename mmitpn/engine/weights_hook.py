"""A check that a checkpoint has all of a model's weights, for evaluation: mmengine only logs what is missing."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmitpn.registry import HOOKS


@HOOKS.register_module()
class WholeWeightsHook(Hook):
    """Refuses a checkpoint that lacks parameters of the model, or has them in another shape.

    Half a model is evaluated without an error otherwise, and its figures look like those of a bad training.
    """

    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Args:
            runner: The runner, with the model built.
            checkpoint: What the file holds: a dict with ``state_dict``, or the state dict itself.

        Raises:
            ValueError: If a parameter is missing or has another shape; names the first three.
        """
        stored = {
            name.removeprefix('module.'): value for name, value in checkpoint.get('state_dict', checkpoint).items()
        }
        wrong = []
        total = 0
        for full_name, param in runner.model.named_parameters():
            name = full_name.removeprefix('module.')  # of a distributed wrapper or of test-time augmentation
            total += 1
            if name not in stored:
                wrong.append(f'{name} missing')
            elif tuple(stored[name].shape) != tuple(param.shape):
                wrong.append(f'{name} {tuple(stored[name].shape)} instead of {tuple(param.shape)}')
        if wrong:
            raise ValueError(
                f'the checkpoint does not fit the config: {len(wrong)} of {total} parameters ({", ".join(wrong[:3])});'
                ' give the config that it was trained with'
            )
