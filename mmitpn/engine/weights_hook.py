"""A check that a checkpoint has all of a model's weights, for evaluation: mmengine only logs what is missing."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmitpn.checkpoint.diagnostics import some
from mmitpn.engine.fit import compare_weights
from mmitpn.registry import HOOKS


@HOOKS.register_module()
class WholeWeightsHook(Hook):
    """Refuses a checkpoint that lacks parameters of the model, or has them in another shape.

    Half a model is evaluated without an error otherwise, and its figures look like those of a bad training run.
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
        wrong, total = compare_weights(runner.model, checkpoint, resizable=True)
        if wrong:
            raise ValueError(
                f'the checkpoint does not fit the config: {len(wrong)} of {total} parameters'
                f' ({some([str(misfit) for misfit in wrong])}); give the config that it was trained with'
            )
