from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip('mmdet')

import torch.multiprocessing as mp
from dino_cases import batch
from dino_ranks import EQUAL, UNEQUAL, WORLD, make_model, values, work

SECONDS = 180


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Results of two processes (gloo, CPU), in order of rank."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.save(make_model().state_dict(), folder / 'start.pth')
    context = mp.spawn(work, args=(str(folder),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f'two processes, one without objects, did not end within {SECONDS} s')
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
def test_a_process_without_objects_takes_part(results):
    first, second = (result['weights'] for result in results)
    start = make_model().state_dict()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)
    moved = [name for name in start if not torch.equal(start[name], first[name])]
    assert 'dn_query_generator.label_embedding.weight' in moved
    assert 'backbone.patch_embed.proj.weight' in moved


@pytest.mark.slow
@pytest.mark.parametrize(
    ('case', 'counts'),
    [
        ('equal', EQUAL),
        # Denoising losses differ: groups and padding depend on the image with most objects of a process.
        ('unequal', UNEQUAL),
    ],
)
def test_two_processes_have_the_loss_of_one_with_the_same_batch(results, case, counts):
    expected = values(make_model()(*batch(counts), mode='loss'))
    names = [name for name in expected if case == 'equal' or 'dn_' not in name]
    for name in names:
        mean = torch.stack([result[case][name] for result in results]).mean()
        torch.testing.assert_close(mean, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f'{n}: {m}')
