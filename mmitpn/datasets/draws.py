"""Randomness that a resumed run meets again: of every sample by its number and pass, whoever loads it.

mmengine seeds its workers once, when they start. What a worker draws for a picture then depends on all that it loaded
before, so that a resumed run sees other crops than an undisturbed one. Here the sampler says in which pass a sample is
drawn, and the first step of the pipeline seeds the generators from that. With :class:`mmitpn.SeedStepHook` for what the
model draws, a run that is resumed on one process equals an undisturbed one bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dataset import DefaultSampler, InfiniteSampler

from ..registry import DATA_SAMPLERS, TRANSFORMS
from ..seeding import seed_generators


class Draw(int):
    """Number of a sample, with the pass over the data in which it is drawn.

    Attributes:
        epoch: The pass, from 0.
        seed: The run's seed.
    """

    epoch: int
    seed: int

    @classmethod
    def of(cls, index: int, *, epoch: int, seed: int) -> Draw:
        """A sample's number with its pass."""
        draw = cls(index)
        draw.epoch, draw.seed = epoch, seed
        return draw


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler``, which also says in which epoch a sample is drawn: see :class:`SeedSample`."""

    def __iter__(self) -> Iterator[int]:
        """The samples of this process in this epoch."""
        return (Draw.of(index, epoch=self.epoch, seed=self.seed) for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler``, which also says in which pass a sample is drawn: see :class:`SeedSample`."""

    def _indices_of_rank(self) -> Iterator[int]:
        for count, index in enumerate(super()._indices_of_rank()):
            epoch = (count * self.world_size + self.rank) // self.size
            yield Draw.of(index, epoch=epoch, seed=self.seed)


@TRANSFORMS.register_module()
class SeedSample(BaseTransform):
    """Seeds all generators from the run's seed, the pass and the number of the sample. The first step of a pipeline."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Seed.

        Args:
            results: What the pipeline knows of the picture; ``sample_idx`` comes from a seeded sampler.

        Returns:
            The same.

        Raises:
            TypeError: If the sampler does not say in which pass the sample is drawn.
        """
        draw = results.get('sample_idx')
        if not isinstance(draw, Draw):
            raise TypeError(
                f'SeedSample was given the sample {draw!r} without its pass: use the sampler mmitpn.SeededSampler or'
                ' mmitpn.SeededInfiniteSampler, and no data set around the data set'
            )
        seed_generators(draw.seed, draw.epoch, int(draw))
        return results
