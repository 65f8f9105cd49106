"""MaskDINO on two processes."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip('mmdet')

import torch.multiprocessing as mp
from mask_dino_ranks import WORLD, fix_points, work

from mmitpn.models.mask_dino.core import CROSS_ENTROPY

SECONDS = 180
EVENLY = {'train_cfg': {'num_points': 64, 'oversample_ratio': 1.0, 'importance_sample_ratio': 0.0}}


@pytest.mark.slow
def test_two_processes_train_as_one_even_if_one_has_no_objects(
    make_head, make_maps, make_sample, tmp_path, monkeypatch
):
    kinds = {'focal': {}, 'softmax': {'loss_cls': CROSS_ENTROPY}}
    settings = {'num_stuff_classes': 2, 'denoising': {'noise_scale': 1e-9}, **EVENLY}
    heads = {kind: make_head(**settings, **loss).train() for kind, loss in kinds.items()}
    cases = {
        'equal': (make_maps(), [make_sample(2, (5,)), make_sample(2, (6,))]),
        'unequal': (make_maps(), [make_sample(4, (5, 6)), make_sample(1, ())]),
        'one empty': (make_maps(), [make_sample(3, ()), make_sample(0, ())]),
        'none': (make_maps(), [make_sample(0, ()), make_sample(0, ())]),
    }
    monkeypatch.setattr(torch, 'rand', torch.rand)  # restored after the test
    fix_points()
    expected = {
        kind: {name: {k: v.detach() for k, v in head.loss(*args).items()} for name, args in cases.items()}
        for kind, head in heads.items()
    }
    context = mp.spawn(work, args=(str(tmp_path), heads, cases), nprocs=WORLD, join=False)
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f'two processes did not end within {SECONDS} s')
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(WORLD))
    for kind, of_cases in expected.items():
        rank0, rank1 = first[kind], second[kind]
        for name, losses in of_cases.items():
            if name == 'none':  # sums are divided by at least one object per process, as in the released code
                continue
            for loss, value in losses.items():
                if (
                    name != 'equal' and 'dn_' in loss
                ):  # the number of groups depends on the image with most objects of a process
                    continue
                mean = (rank0[name][loss] + rank1[name][loss]) / 2
                where = (kind, name, loss)
                torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=lambda m, w=where: f'{w}: {m}')
        for name, value in rank0['weights'].items():
            assert torch.equal(value, rank1['weights'][name]), name
