"""A dataset whose samples are the same again in a resumed run, and whose broken samples are named."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ..registry import DATASETS
from ..utils import check_int, seed_generators
from .samplers import SeededIndex


@DATASETS.register_module()
class SeededDataset:
    """A wrapper with the attributes and methods of its dataset.

    All generators are seeded for every sample from the run's seed, the epoch and the index, where the sampler gives the
    epoch (:class:`SeededSampler`, :class:`SeededInfiniteSampler`).

    Args:
        dataset: The dataset, or its config.
        max_broken: How many samples may fail to load before the run stops. Each is named in the log once, and the next
            one of the dataset replaces it. Counted over the workers of a process.
    """

    def __init__(self, dataset: Mapping[str, Any] | Any, max_broken: int = 0) -> None:
        check_int('max_broken', max_broken, least=0)
        built = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        # Shared with the workers: one mark per sample.
        marks = multiprocessing.Array('b', len(built))
        self.__dict__.update(dataset=built, max_broken=max_broken, _broken=marks)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # a copy that is not filled yet, or what Python itself looks for
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # a hook that changes the pipeline means that of the dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """A sample.

        Args:
            index: Its index; a :class:`SeededIndex` also carries the epoch.

        Returns:
            What the dataset returns.

        Raises:
            RuntimeError: If more than ``max_broken`` could not be loaded; it names this one.
        """
        if isinstance(index, SeededIndex):
            seed_generators(index.seed, index.epoch, int(index))
        for offset in range(len(self)):
            number = (int(index) + offset) % len(self)
            if self._broken[number]:
                continue
            try:
                return self.dataset[number]
            except Exception as error:  # noqa: BLE001  whatever a file that is not whole makes a pipeline raise
                self._mark(number, error)
        raise RuntimeError(f'none of the {len(self)} samples can be loaded')

    def _mark(self, number: int, error: Exception) -> None:
        with self._broken.get_lock():
            self._broken[number] = 1
            count = sum(self._broken)
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
        what = f'sample {number} ({self._name(number)}) cannot be loaded: {reason}'
        if count > self.max_broken:
            raise RuntimeError(
                f'{what}; that makes {count}, and max_broken_samples is {self.max_broken}: fix or remove the image,'
                ' or set max_broken_samples in the config to train on others in its place'
            ) from error
        print_log(
            f'{what}; the next takes its place ({count} of at most {self.max_broken})', 'current', logging.WARNING
        )

    def _name(self, number: int) -> str:
        """The file of the image, where the dataset knows it."""
        info = self.dataset.get_data_info(number) if hasattr(self.dataset, 'get_data_info') else {}
        return str(info.get('img_path', 'without a name')) if isinstance(info, Mapping) else 'without a name'
