"""Samplers that say in which pass a sample is drawn, and a batch sampler that can start in the middle of a pass.

mmengine seeds its workers once, when they start. What a worker draws for a picture then depends on all that it loaded
before, so that a resumed run sees other crops than an undisturbed one. Here the sampler says in which pass a sample is
drawn, and :class:`SeededDataset` seeds the generators from that. With :class:`mmitpn.SeedStepHook` for what the model
draws, a run that is resumed on one process equals an undisturbed one bit for bit. ``tools/train.py`` puts all of it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler

from ..registry import DATA_SAMPLERS


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
    """mmengine's ``DefaultSampler``, which also says in which epoch a sample is drawn."""

    def __iter__(self) -> Iterator[int]:
        """The samples of this process in this epoch."""
        return (Draw.of(index, epoch=self.epoch, seed=self.seed) for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler``, which also says in which pass a sample is drawn."""

    def _indices_of_rank(self) -> Iterator[int]:
        for count, index in enumerate(super()._indices_of_rank()):
            epoch = (count * self.world_size + self.rank) // self.size
            yield Draw.of(index, epoch=epoch, seed=self.seed)


@DATA_SAMPLERS.register_module()
class SkippingBatchSampler:
    """Batches of another batch sampler, of which the next pass may leave out the first ones, without loading them.

    Args:
        sampler: Sampler of single samples.
        batch_size: Samples a batch.
        batches: Config of the other batch sampler, such as mmdet's ``AspectRatioBatchSampler``; None: batches in the
            order of the sampler.
        drop_last: Leave out a last batch that is not full; with ``batches`` set it there.
    """

    def __init__(
        self, sampler: Sized, batch_size: int, batches: Mapping[str, Any] | None = None, *, drop_last: bool = False
    ) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self._skip = 0
        if batches is None:
            self._batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self._batches = DATA_SAMPLERS.build(batches, default_args={'sampler': sampler, 'batch_size': batch_size})

    def skip(self, batches: int) -> None:
        """Let the next pass begin after so many batches."""
        self._skip = batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of a pass."""
        # Only when the first is asked for: torch's loader makes an iterator that it does not use.
        skip, self._skip = self._skip, 0
        yield from islice(iter(self._batches), skip, None)

    def __len__(self) -> int:
        """Batches of a whole pass."""
        return len(self._batches)
