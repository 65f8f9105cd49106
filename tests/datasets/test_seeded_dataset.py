"""Samples that are the same again in a resumed run, batches that begin within a pass, and broken samples by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader

from mmitpn.datasets import SeededDataset, SeededInfiniteSampler, SeededSampler, SkippingBatchSampler, seeded_dataset
from mmitpn.datasets.samplers import SeededIndex


class Numbers:
    """A dataset that draws, and some of whose samples are broken."""

    pipeline = 'first'

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def get_data_info(self, index: int) -> dict:
        return {'img_path': f'{index}.jpg'}

    def __getitem__(self, index: int) -> tuple:
        if index in self.broken:
            raise OSError('cut off')
        return index, float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_samplers_draw_as_the_hosts_and_say_the_pass():
    sampler = SeededSampler(range(5), seed=3)
    first = list(sampler)
    sampler.set_epoch(2)
    host = DefaultSampler(range(5), seed=3)
    host.set_epoch(2)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert {draw.epoch for draw in first} == {0}
    assert {draw.epoch for draw in sampler} == {2}
    assert list(sampler) == list(host)
    own, host = iter(SeededInfiniteSampler(range(5), seed=3)), iter(InfiniteSampler(range(5), seed=3))
    drawn = [next(own) for _ in range(12)]
    assert drawn == [next(host) for _ in range(12)]
    assert [draw.epoch for draw in drawn] == [0] * 5 + [1] * 5 + [2] * 2


def test_a_sample_is_seeded_by_its_number_and_pass():
    numbers = SeededDataset(Numbers())
    torch.rand(3)

    def sample(index: int = 3, **draw) -> tuple:
        return numbers[SeededIndex.of(index, **draw)]

    assert sample(epoch=1, seed=0) == sample(epoch=1, seed=0)
    drawn = [sample(epoch=1, seed=0), sample(epoch=2, seed=0), sample(epoch=1, seed=1), sample(4, epoch=1, seed=0)]
    assert len({values[1] for values in drawn}) == len({values[2] for values in drawn}) == 4


def test_it_stands_for_the_dataset():
    numbers = SeededDataset(Numbers())
    assert len(numbers) == 10
    assert numbers.get_data_info(2) == {'img_path': '2.jpg'}
    numbers.pipeline = 'second'  # as the hosts' hooks do
    assert numbers.dataset.pipeline == 'second'
    with pytest.raises(AttributeError, match='metainfo'):
        _ = numbers.metainfo


def drawn(numbers: SeededDataset, workers: int = 0) -> list[int]:
    loader = DataLoader(numbers, batch_size=5, num_workers=workers, collate_fn=list)
    return [sample[0] for batch in loader for sample in batch]


@pytest.mark.parametrize('workers', [0, 2])
def test_the_next_takes_the_place_of_a_broken_sample(workers, monkeypatch):
    logged = []
    monkeypatch.setattr(seeded_dataset, 'print_log', lambda text, *_: logged.append(text))
    numbers = SeededDataset(Numbers(broken=(2, 3, 7)), max_broken=3)
    for _ in range(2):  # a sample counts once, whoever meets it
        assert drawn(numbers, workers) == [0, 1, 4, 4, 4, 5, 6, 8, 8, 9]
    if not workers:
        assert len(logged) == 3
        assert logged[2].startswith(
            'sample 7 (7.jpg) cannot be loaded: OSError: cut off; the next takes its place (3 of'
        )


# The workers of a loader that has raised are waited for, 5 seconds each.
@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_more_broken_samples_than_allowed_stop_the_run(workers):
    with pytest.raises(RuntimeError, match=r'sample \d \(\d\.jpg\).* makes 3, and max_broken_samples is 2'):
        drawn(SeededDataset(Numbers(broken=(2, 3, 7)), max_broken=2), workers)
    with pytest.raises(RuntimeError, match='none of the 10 samples'):
        drawn(SeededDataset(Numbers(broken=tuple(range(10))), max_broken=10))


def test_a_limit_that_is_no_number():
    with pytest.raises(ValueError, match='max_broken is -1'):
        SeededDataset(Numbers(), max_broken=-1)
    with pytest.raises(ValueError, match='max_broken is True'):
        SeededDataset(Numbers(), max_broken=True)


def test_batches_begin_within_a_pass_once():
    sampler = SeededSampler(range(10), shuffle=False)
    batches = SkippingBatchSampler(sampler, 3)
    whole = list(batches)
    batches.skip(2)
    iter(batches)  # torch's loader makes one iterator too many
    assert list(batches) == whole[2:]
    assert list(batches) == whole
    batches.skip(4)
    assert list(batches) == []
    assert len(batches) == 4 == len(whole)
    assert len(SkippingBatchSampler(sampler, 3, drop_last=True)) == 3


def test_batches_of_another_batch_sampler():
    mmdet = pytest.importorskip('mmdet.datasets')
    assert mmdet
    widths = [80, 40] * 5

    class Images(Numbers):
        def get_data_info(self, index: int) -> dict:
            return {'width': widths[index], 'height': 60}

    sampler = SeededSampler(SeededDataset(Images()), shuffle=False)
    batches = SkippingBatchSampler(sampler, 2, {'type': 'mmdet.AspectRatioBatchSampler'})
    whole = list(batches)
    assert whole[:2] == [[0, 2], [1, 3]]
    batches.skip(1)
    assert list(batches) == whole[1:]
    assert len(batches) == len(whole) == 5
