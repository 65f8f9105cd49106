"""The memory that a training run needs on each GPU: parameters, gradients, states, activations; sharded or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.table import Table

from .model_states import ModelStates
from .timeline import MemoryTimeline

GB = 10**9
OVERHEAD = 1.5  # GB: CUDA context, communication, fragmentation of the allocator; not run here
ROWS = {
    'parameters': 'parameters and buffers',
    'gradients': 'gradients',
    'states': 'optimizer states',
    'exchange': 'buckets, or gathered units',
    'activations': 'activations',
    'temporaries': 'temporaries',
    'not_at_once': 'not allocated at the same time',
    'overhead': 'overhead (not run here)',
    'total': 'total',
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one process, in bytes; the rows add up to ``total``.

    Attributes:
        checkpointing: ``'none'``, ``'config'`` or ``'all'``.
        sharded: Whether parameters, gradients and states are divided among the GPUs (FSDP).
        gpus: Number of GPUs.
        parameters: Parameters and buffers, with frozen parts and an averaged copy.
        gradients: All gradients.
        states: Optimizer states.
        exchange: Not sharded: the buckets in which gradients are reduced. Sharded: what is gathered at one time.
        activations: Allocated when the forward pass has ended.
        temporaries: Allocated beside that at the peak.
        not_at_once: What of the above is not allocated at the peak; 0 or less.
        overhead: The argument of :func:`estimate`.
        total: The peak.
        moment: When the peak is: ``'forward'``, ``'backward'`` or ``'optimizer'``.
    """

    checkpointing: str
    sharded: bool
    gpus: int
    parameters: int
    gradients: int
    states: int
    exchange: int
    activations: int
    temporaries: int
    not_at_once: int
    overhead: int
    total: int
    moment: str


def estimate(
    model: ModelStates,
    step: MemoryTimeline,
    *,
    gpus: int = 1,
    sharded: bool = False,
    checkpointing: str = 'none',
    overhead: int = 0,
    on_cpu: bool = False,
) -> MemoryEstimate:
    """Add up the memory of one process.

    Gradients are allocated while activations are freed, so the peak is searched along the step: the forward pass, the
    backward pass from gradient to gradient, the optimizer's step. States are allocated from the second step on.

    One GPU reduces nothing and shards nothing. On several, ``exchange`` is: not sharded (DDP), one more copy of the
    gradients; sharded (FSDP), two gathered units and the gradients of one, and the gathered rest of the model with its
    gradients.

    Args:
        model: The model and its optimizer.
        step: A training step.
        gpus: Number of processes, one GPU each.
        sharded: Whether FSDP shards parameters, gradients and states.
        checkpointing: How the step was run, for the table.
        overhead: Bytes to add.
        on_cpu: The optimizer's step is that of a CPU.

    Raises:
        ValueError: If ``gpus`` is less than 1.
    """
    if gpus < 1:
        raise ValueError(f'gpus is {gpus}; give an integer of at least 1')
    shards = gpus if sharded else 1
    parameters = (model.trainable + model.frozen + model.averaged) // shards + model.buffers
    gradients, states = model.trainable // shards, model.states // shards
    if gpus == 1:
        exchange = 0
    elif sharded:
        exchange = 2 * model.root + 3 * model.largest_unit
    else:
        exchange = 0 if model.bucket_view else model.trainable
    kept = gradients if model.keeps_gradients else 0
    accumulated = accumulate((model.gradients[name] // shards for name in step.names), initial=0)
    backward = ((peak, kept or ready) for peak, ready in zip(step.backward, accumulated, strict=True))
    optimizer_step = model.step_loop if on_cpu else model.step_foreach // shards
    moments = {
        'forward': (step.forward, kept),
        'backward': max(backward, key=sum),
        'optimizer': (step.remaining + optimizer_step, gradients),
    }
    moment, (allocated, ready) = max(moments.items(), key=lambda item: sum(item[1]))
    activations = 0 if moment == 'optimizer' else step.activations
    temporaries = max(allocated - activations, 0)
    always = parameters + states + exchange
    return MemoryEstimate(
        checkpointing=checkpointing,
        sharded=sharded,
        gpus=gpus,
        parameters=parameters,
        gradients=gradients,
        states=states,
        exchange=exchange,
        activations=step.activations,
        temporaries=temporaries,
        not_at_once=allocated + ready - gradients - step.activations - temporaries,
        overhead=overhead,
        total=always + allocated + ready + overhead,
        moment=moment,
    )


def estimate_all(
    model: ModelStates, steps: dict[str, MemoryTimeline], *, gpus: int = 1, overhead: int = 0
) -> list[MemoryEstimate]:
    """One estimate for each way of checkpointing; for several GPUs, first not sharded, then sharded."""
    return [
        estimate(model, step, gpus=gpus, sharded=sharded, checkpointing=name, overhead=overhead)
        for sharded in ((False,) if gpus == 1 else (False, True))
        for name, step in steps.items()
    ]


def heading(one: MemoryEstimate) -> str:
    """Heading of an estimate's column."""
    named = {'none': 'no checkpointing', 'config': 'as the config', 'all': 'checkpointing'}[one.checkpointing]
    return named if one.gpus == 1 else f'{named}, {"FSDP" if one.sharded else "DDP"} {one.gpus}'


def estimate_table(estimates: Sequence[MemoryEstimate], title: str) -> Table:
    """The printed table, in GB of 10^9 bytes."""
    table = Table(title=title)
    table.add_column('GB on each GPU')
    for one in estimates:
        table.add_column(heading(one), justify='right')
    for row, label in ROWS.items():
        if row == 'total':
            table.add_section()
        table.add_row(label, *(f'{getattr(one, row) / GB:.2f}' for one in estimates))
    return table


def verdict(one: MemoryEstimate, card: float) -> str:
    """Whether an estimate fits a GPU with ``card`` GB, in words."""
    room = card - one.total / GB
    if room >= 0:
        return f'{heading(one)}: fits {card:g} GB with {room:.1f} GB to spare'
    return f'{heading(one)}: does not fit {card:g} GB, {-room:.1f} GB are missing'
