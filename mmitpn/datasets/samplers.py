"""Samplers whose indices carry the epoch they are drawn in, and a batch sampler that can start within an epoch.

mmengine seeds its workers once, when they start. The random numbers of an image then depend on all that its worker
loaded before, so that a resumed run sees other crops than an uninterrupted one. Here the index carries the epoch, and
:class:`SeededDataset` seeds the generators from both. With :class:`mmitpn.SeedStepHook` for the random numbers of the
model, a run that is resumed on one process equals an uninterrupted one bit for bit. ``tools/train.py`` sets all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler

from ..registry import DATA_SAMPLERS


class SeededIndex(int):
    """Index of a sample, with the epoch in which it is drawn.

    Attributes:
        epoch: The epoch (the pass over the data), from 0.
        seed: The run's seed.
    """

    epoch: int
    seed: int

    @classmethod
    def of(cls, index: int, *, epoch: int, seed: int) -> SeededIndex:
        """An index with its epoch."""
        seeded = cls(index)
        seeded.epoch, seeded.seed = epoch, seed
        return seeded


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` with indices that carry the epoch."""

    def __iter__(self) -> Iterator[int]:
        """The samples of this process in this epoch."""
        return (SeededIndex.of(index, epoch=self.epoch, seed=self.seed) for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler`` with indices that carry the epoch: the pass over the data."""

    def _indices_of_rank(self) -> Iterator[int]:
        for count, index in enumerate(super()._indices_of_rank()):
            epoch = (count * self.world_size + self.rank) // self.size
            yield SeededIndex.of(index, epoch=epoch, seed=self.seed)


@DATA_SAMPLERS.register_module()
class SkippingBatchSampler:
    """Batches of another batch sampler; the first ones of the next epoch can be skipped without loading them.

    Args:
        sampler: Sampler of single samples.
        batch_size: Samples per batch.
        batches: Config of the other batch sampler, such as mmdet's ``AspectRatioBatchSampler``; None: batches in the
            order of the sampler.
        drop_last: Leave out a last batch that is not full; with ``batches``, set it there.
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
        """Start the next epoch after this number of batches."""
        self._skip = batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of an epoch."""
        # Only when the first is asked for: torch's loader makes an iterator that it does not use.
        skip, self._skip = self._skip, 0
        yield from islice(iter(self._batches), skip, None)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self._batches)
