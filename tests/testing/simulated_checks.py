"""What the simulated device does itself: each function runs in the process of device_worker.py, within the device."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmitpn.engine import StopOnInvalidLossHook
from mmitpn.testing import simulated_device
from mmitpn.testing.host_waits import DeviceCounters

CHECKS: dict[str, Callable[[DeviceCounters], None]] = {}


def check(function: Callable[[DeviceCounters], None]) -> Callable[[DeviceCounters], None]:
    CHECKS[function.__name__] = function
    return function


@check
def tensors_report_the_device(sim):
    made = [
        torch.zeros(2, device='sim'),
        torch.arange(3, device=sim.device),
        torch.tensor([1.0, 2.0], device='sim'),
        torch.as_tensor(np.ones(2), device='sim'),
        torch.ones(2).to('sim'),
        torch.randn(2, device='sim')[0],
        nn.Linear(2, 2).to('sim').weight,
    ]
    assert {str(one.device) for one in made} == {'sim:0'}
    assert made[2].cpu().tolist() == [1, 2]
    assert made[0].new_ones(2).device.type == made[0].new_tensor([1]).device.type == 'sim'
    assert made[0].cpu().device.type == torch.zeros(2).device.type == 'cpu'


@check
def a_tensor_on_the_wrong_device_fails(sim):
    ours, other = torch.ones(2, 2, device='sim'), torch.ones(2, 2)
    for call in (
        lambda: ours + other,
        lambda: other * ours[0, 0],
        lambda: torch.cat([ours, other]),
        lambda: torch.stack([ours[0, 0], torch.tensor(1.0)]),
        lambda: ours @ other,
        lambda: nn.Linear(2, 2)(ours),
        lambda: torch.where(other > 0, ours, 0),
    ):
        with pytest.raises(RuntimeError, match=r'Expected all tensors to be on the same device, but \w+ got'):
            call()
    with pytest.raises(RuntimeError, match="Expected a 'sim' device type for generator but rand got 'cpu'"):
        torch.rand(2, device='sim', generator=torch.Generator())
    with pytest.raises((RuntimeError, TypeError)):
        ours.numpy()
    assert (ours + torch.tensor(1.0)).sum().item() == 8  # a number is taken, as by CUDA's operators


@check
def waits_are_counted_by_what_was_needed(sim):
    x = torch.arange(6.0, device='sim')
    index = torch.tensor([1, 2], device='sim')
    for call, waits, copies in (
        (lambda: float(x.sum()), {'item': 1}, {}),
        (lambda: bool((x > 0).any()), {'item': 1}, {}),
        (lambda: int(x[2]), {'item': 1}, {}),
        (x.tolist, {'copy to host': 1}, {}),
        (x.cpu, {'copy to host': 1}, {}),
        (lambda: x[x > 3], {'index with a mask': 1}, {}),
        (lambda: torch.where(x > 3), {'nonzero': 1}, {}),
        (x.unique, {'unique': 1}, {}),
        (lambda: torch.bincount(index), {'bincount': 1}, {}),
        (lambda: x[:2].repeat_interleave(index), {'repeat_interleave without output_size': 1}, {}),
        (lambda: torch.tensor([x[0], x[1]]), {'item': 2}, {}),
        (lambda: torch.equal(x, x), {'equal': 1}, {}),
        (lambda: x.new_tensor([1.0]), {}, {'tensor': 1}),
        (lambda: torch.ones(2).to('sim'), {}, {'copy to device': 1}),
        (lambda: torch.zeros(2, device='sim').copy_(torch.ones(2)), {}, {'copy to device': 1}),
        (lambda: x[[0, 1]], {}, {'as_tensor': 1}),
        (lambda: x[torch.tensor([0, 1])], {}, {'index with a CPU tensor': 1}),
        (lambda: x.clone().masked_fill_(x > 3, 0.0), {}, {}),
        (lambda: x.clone().__setitem__(x > 3, 0.0), {}, {}),  # a number is filled in where the mask is
        (lambda: x[:2].repeat_interleave(index, output_size=3), {}, {}),
        (lambda: x.repeat_interleave(2), {}, {}),
        (lambda: x[index], {}, {}),
        (lambda: list(x), {}, {}),
        (lambda: torch.full((2,), 1.0, device='sim').topk(1), {}, {}),
    ):
        sim.reset()
        call()
        assert (sim.waits, sim.copies) == (Counter(waits), Counter(copies))
        assert sim.where.total() == sim.num_waits + sim.num_copies


@check
def copies_from_pinned_memory_have_their_own_name(sim):
    pinned = torch.ones(2).pin_memory()
    assert pinned.is_pinned()
    sim.reset()
    pinned.to('sim', non_blocking=True)
    assert sim.copies == {'copy to device from pinned memory': 1}
    pinned.to('sim')
    assert sim.copies['copy to device'] == 1


@check
def operators_are_counted(sim):
    x = torch.ones(2, 2, device='sim')
    sim.reset()
    F.linear(x, x).relu()
    assert sim.operators == {'t': 1, 'mm': 1, 'relu': 1}
    torch.ones(2) + 1
    assert sim.num_operators == 3
    with torch.inference_mode():
        F.linear(x, x)
    assert sim.operators['mm'] == 2


@check
def losses_are_copied_for_the_log_at_once(sim):
    losses = {f'loss_{i}': torch.tensor(i / 3, device='sim') for i in range(5)}
    outputs = {**losses, 'recall': torch.tensor(0.5), 'number': 3}
    sim.reset()
    StopOnInvalidLossHook().after_train_iter(SimpleNamespace(iter=0), 0, outputs=outputs)
    assert sim.waits == {'item': 1, 'copy to host': 1}  # whether they are finite, and their values
    assert outputs == {name: loss.item() for name, loss in losses.items()} | {'recall': torch.tensor(0.5), 'number': 3}


@check
def lines_of_the_project_are_named(sim):
    from mmitpn.models.selfsup.masking import visible_ids

    masks = torch.zeros(1, 2, 2, dtype=torch.bool, device='sim')
    sim.reset()
    visible_ids(masks)
    (where,) = sim.where
    assert where.startswith('copy to host @ mmitpn/models/selfsup/masking.py:')


@check
def random_numbers_are_those_of_the_cpu(sim):
    for draw in (torch.rand, torch.randn, torch.randperm):
        torch.manual_seed(3)
        ours = draw(5, device='sim')
        torch.manual_seed(3)
        assert torch.equal(ours.cpu(), draw(5))
    results = []
    for device in ('sim', 'cpu'):
        torch.manual_seed(3)
        results.append(F.dropout(torch.ones(20, device=device), 0.5).cpu())
    assert torch.equal(*results)


@check
def modules_move_as_to_a_gpu(sim):
    one, other = nn.Linear(3, 3), nn.BatchNorm1d(3)
    one.weight.requires_grad_(False)
    both = nn.Sequential(one, other, nn.Linear(3, 3))
    both[2].bias = one.bias  # a parameter of two modules
    optimizer = torch.optim.AdamW(both.parameters(), lr=0.1)
    both.to('sim')
    assert both[2].bias is one.bias
    assert isinstance(one.weight, nn.Parameter)
    assert not one.weight.requires_grad
    assert other.running_mean.device.type == 'sim'
    before = one.bias.detach().clone()
    both(torch.randn(4, 3, device='sim')).square().sum().backward()
    optimizer.step()  # of parameters that were moved later
    assert not torch.equal(one.bias.cpu(), before.cpu())

    twin = copy.deepcopy(both)
    with torch.no_grad():
        twin[0].bias.zero_()
    assert twin[2].bias is twin[0].bias
    assert one.bias.abs().sum().item() > 0
    both.load_state_dict({name: value.cpu() for name, value in twin.state_dict().items()})
    assert one.bias.abs().sum().item() == 0


@check
def optimizers_and_clipping_never_wait(sim):
    results = []
    for device in ('sim', 'cpu'):
        for options in ({}, {'foreach': True}, {'foreach': False}, {'fused': False}):
            torch.manual_seed(0)
            layer = nn.Linear(3, 3).to(device)
            optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **options)
            layer(torch.ones(2, 3, device=device)).square().sum().backward()
            sim.reset()
            nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
            optimizer.step()
            assert sim.num_waits + sim.num_copies == 0
            results.append(layer.weight.detach().cpu())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@check
def checkpointing_draws_the_same_numbers_again(sim):
    for reentrant in (False, True):
        x = torch.ones(50, device='sim', requires_grad=True)
        y = checkpoint(lambda x: F.dropout(x, 0.5), x, use_reentrant=reentrant)
        y.sum().backward()
        assert torch.equal(x.grad.cpu(), y.detach().cpu())


@check
def autocast_is_that_of_cuda(sim):
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).to('sim')
    x = torch.randn(2, 4, device='sim')
    with torch.autocast('sim', dtype=torch.bfloat16):
        assert layer[0](x).dtype == torch.bfloat16
        assert layer(x).dtype == layer[0](x).softmax(1).dtype == torch.float32
        with torch.autocast('sim', enabled=False):
            assert layer[0](x).dtype == torch.float32
        layer(x).square().sum().backward()
    assert layer[0].weight.grad.dtype == torch.float32


@check
def attention_is_one_operator(sim):
    q = torch.randn(1, 2, 8, 4)
    for mask in (None, torch.rand(8, 8) > 0.5):
        expected = F.scaled_dot_product_attention(q, q, q, mask)
        ours = q.to('sim').requires_grad_()
        sim.reset()
        found = F.scaled_dot_product_attention(ours, ours, ours, None if mask is None else mask.to('sim'))
        assert sim.operators['_scaled_dot_product_flash_attention_for_cpu'] == 1
        assert torch.equal(found.detach().cpu(), expected)
        found.sum().backward()
        assert ours.grad.device.type == 'sim'


@check
def shapes_follow_operators_in_place(sim):
    x = torch.zeros(2, 3, device='sim')
    assert x.unsqueeze_(0).shape == (1, 2, 3)
    assert x.squeeze_(0).t_().shape == x.shape == (3, 2)
    assert (x + 1).sum().item() == 6
    view = x[0]
    view += 1
    assert x.sum().item() == 2
    x.data = torch.ones(2, device='sim')
    assert x.tolist() == [1, 1]


@check
def counters_are_those_of_the_innermost_context(sim):
    x = torch.ones(2, device='sim')
    sim.reset()
    with simulated_device() as inner:
        x.cpu()
    assert (inner.num_waits, sim.num_waits) == (1, 0)
    x.cpu()
    assert (inner.num_waits, sim.num_waits) == (1, 1)
