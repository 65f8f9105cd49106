"""A data set whose samples are the same again in a resumed run, and whose broken samples are named."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ..registry import DATASETS
from ..seeding import seed_generators
from .draws import Draw


@DATASETS.register_module()
class SeededDataset:
    """Stands before another data set, whose attributes and methods it has.

    All generators are seeded for every sample from the run's seed, the pass and the sample's number, where the sampler
    says the pass (:class:`SeededSampler`, :class:`SeededInfiniteSampler`).

    Args:
        dataset: The data set, or its config.
        max_broken: How many samples may fail to load before the run stops. Each is named in the log once, and the next
            one of the data set takes its place. Counted over the workers of a process.
    """

    def __init__(self, dataset: Mapping[str, Any] | Any, max_broken: int = 0) -> None:
        if isinstance(max_broken, bool) or not isinstance(max_broken, int) or max_broken < 0:
            raise ValueError(f'max_broken is {max_broken!r}; give a whole number of samples of at least 0')
        built = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        # Shared with the workers: one mark a sample.
        marks = multiprocessing.Array('b', len(built))
        self.__dict__.update(dataset=built, max_broken=max_broken, _broken=marks)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # a copy that is not filled yet, or what Python itself looks for
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # a hook that changes the pipeline means that of the data set

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """A sample.

        Args:
            index: Its number; a :class:`Draw` also says the pass.

        Returns:
            What the data set gives.

        Raises:
            RuntimeError: If more than ``max_broken`` could not be loaded; names this one.
        """
        if isinstance(index, Draw):
            seed_generators(index.seed, index.epoch, int(index))
        for place in range(len(self)):
            number = (int(index) + place) % len(self)
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
        said = f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
        what = f'sample {number} ({self._name(number)}) cannot be loaded: {said}'
        if count > self.max_broken:
            raise RuntimeError(
                f'{what}; that makes {count}, and max_broken_samples is {self.max_broken}: mend or remove the picture,'
                ' or set max_broken_samples in the config to go on with others in such places'
            ) from error
        said = f'{what}; the next takes its place ({count} of at most {self.max_broken})'
        print_log(said, 'current', logging.WARNING)

    def _name(self, number: int) -> str:
        """The picture's file, where the data set tells."""
        info = self.dataset.get_data_info(number) if hasattr(self.dataset, 'get_data_info') else {}
        return str(info.get('img_path', 'without a name')) if isinstance(info, Mapping) else 'without a name'
