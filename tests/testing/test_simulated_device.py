"""Every model on the simulated device, and on a GPU where there is one: results as on the CPU, few waits of the host.

The devices run in processes of their own, see device_worker.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

from mmitpn.testing import simulated_device

for framework in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(framework)

sys.path.append(str(Path(__file__).parent))
from device_worker import CASES
from simulated_checks import CHECKS

WORKER = Path(__file__).with_name('device_worker.py')
SIMULATED = hasattr(backend_registration, '_setup_privateuseone_for_python_backend')
needs_backend = pytest.mark.skipif(not SIMULATED, reason=f'needs torch 2.10 or later; this is {torch.__version__}')

# The most waits and copies of the host for a device: of a prediction, and of forward and loss, whatever the numbers of
# layers, images and objects. From the normalized batch and its ground truth on the device to results and losses there.
BUDGETS = {
    'dino': (0, 4),
    'dino-deep': (0, 4),
    'mask-dino-instance': (1, 3),
    'mask-dino-deep': (1, 3),
    'mask-dino-panoptic': (1, 4),
    'mask-dino-semantic': (0, 3),
    'decode-head': (0, 3),
    'upernet': (0, 8),  # the losses and the accuracy of mmseg
    'mask-rcnn': (100, 200),  # mmdet's heads, which wait per image and level
    'classifier': (0, 0),
    'fast-itpn': (0, 0),
    'fast-itpn-deep': (0, 0),
    'itpn': (0, 0),
    'gathering': (0, 0),
    'gathering-learned': (0, 0),
    'migration': (0, 0),
    'both': (0, 0),
    'pre-training-fast': (0, 0),
    'pre-training-clip': (0, 0),
    'pre-training-pixel': (0, 0),
    'pre-training-mfm': (0, 0),
    'pre-training-hog': (0, 0),
    'pre-training-network': (0, 0),
    'pre-training-pipeline': (0, 1),  # the masks come with the batch
}
# Gradients, clipping and optimizer; mmengine reads the norm of the gradients for the log.
UPDATE_BUDGETS = dict.fromkeys(BUDGETS, 1) | {'mask-rcnn': 2}
# The largest differences from the CPU; a step changes a weight by at most the learning rate of 1e-3.
EXACT = {'losses': 1e-5, 'results': 1e-5, 'weights': 1e-6, 'average': 1e-6}
# Results: one detection of ten, whose order depends on last digits, or a tenth of a label map.
OTHER_KERNELS = {'losses': 1e-3, 'results': 0.1, 'weights': 2e-4, 'average': 2e-4}
FAST = ('both', 'pre-training-pixel')
GROUP = 6  # slow cases of one process


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """Run cases on a device in one process, once."""
    done: dict[tuple[str, ...], dict[str, Any]] = {}

    def once(*arguments: str) -> dict[str, Any]:
        if arguments not in done:
            out = tmp_path_factory.mktemp('device') / 'found.json'
            command = [sys.executable, str(WORKER), str(out), *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr[-3000:]
            done[arguments] = json.loads(out.read_text())
        return done[arguments]

    return once


def assert_as_on_the_cpu(found: dict[str, Any], limits: dict[str, float]) -> None:
    assert 'error' not in found, found['error']
    assert {what: value for what, value in found['difference'].items() if not value <= limits[what]} == {}
    assert found['bf16'] == pytest.approx(1, abs=0.1)  # the loss under autocast, relative to that in fp32


def assert_within_budget(name: str, found: dict[str, Any]) -> None:
    prediction, loss = BUDGETS[name]
    for phase, most in (('prediction', prediction), ('loss', loss), ('updating', UPDATE_BUDGETS[name])):
        for counts in found[phase]:
            assert counts['total'] <= most, (phase, counts['where'])


def simulate(run: Callable[..., dict[str, Any]], name: str) -> dict[str, Any]:
    if name in FAST:
        return run('sim', *CHECKS, *FAST)[name]
    slow = [one for one in CASES if one not in FAST]
    first = slow.index(name) // GROUP * GROUP
    return run('sim', *slow[first : first + GROUP])[name]


@needs_backend
@pytest.mark.parametrize('name', CHECKS)
def test_device(run, name):
    found = run('sim', *CHECKS, *FAST)[name]
    assert 'error' not in found, found['error']


@needs_backend
@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in CASES])
def test_results_are_those_of_the_cpu_with_few_waits(run, name):
    found = simulate(run, name)
    assert_as_on_the_cpu(found, EXACT)
    assert_within_budget(name, found)
    assert min(counts['operators'] for phase in ('updating', 'loss', 'prediction') for counts in found[phase]) > 0


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_results_on_a_gpu_are_those_of_the_cpu_with_few_waits(run, name):
    found = run('cuda', *CASES)[name]
    assert_as_on_the_cpu(found, OTHER_KERNELS)
    assert_within_budget(name, found)


@pytest.mark.skipif(SIMULATED, reason='this torch has Python backends')
def test_an_older_torch_is_refused():
    with pytest.raises(RuntimeError, match=r'needs the Python backends of torch 2\.10 or later; this is torch'):
        simulated_device().__enter__()
