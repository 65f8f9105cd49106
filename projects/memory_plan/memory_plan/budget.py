"""What a training needs on each GPU, on paper: parameters, gradients, states, activations; sharded or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.table import Table

from .model_facts import ModelFacts
from .step_trace import StepTrace

GB = 10**9
OVERHEAD = 1.5  # GB: CUDA context, communication, what an allocator cannot use; not run here
ROWS = {
    'parameters': 'parameters and buffers',
    'gradients': 'gradients',
    'states': 'optimiser states',
    'exchange': 'buckets, or gathered units',
    'activations': 'activations',
    'temporaries': 'temporaries',
    'not_at_once': 'not held at the same time',
    'overhead': 'overhead (not run here)',
    'total': 'total',
}


@dataclass(frozen=True)
class Budget:
    """The memory of one process, in bytes; the rows add up to ``total``.

    Attributes:
        checkpointing: ``'none'``, ``'config'`` or ``'all'``.
        sharded: Whether parameters, gradients and states are divided among the GPUs (FSDP).
        gpus: How many there are.
        parameters: And buffers, frozen parts and an averaged copy.
        gradients: All of them.
        states: Of the optimiser.
        exchange: Not sharded: the buckets in which gradients are exchanged. Sharded: what is gathered at one time.
        activations: What a step holds when its forward pass has ended.
        temporaries: What its fullest moment needs beside that.
        not_at_once: What of the above is not there in the fullest moment; 0 or less.
        overhead: As given.
        total: The fullest moment.
        moment: Which it is: ``'forward'``, ``'backward'`` or ``'optimiser'``.
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


def plan(
    facts: ModelFacts,
    trace: StepTrace,
    *,
    gpus: int = 1,
    sharded: bool = False,
    checkpointing: str = 'none',
    overhead: int = 0,
    on_cpu: bool = False,
) -> Budget:
    """Add up what one process needs.

    Gradients become while activations go, so the fullest moment is looked for along the step: the forward pass, the
    backward pass from gradient to gradient, the optimiser's step. States are there from the second step on.

    One GPU exchanges nothing and shards nothing. Several hold, beside what is in the row of their own:
    not sharded (DDP), one more copy of the gradients; sharded (FSDP), two gathered units and the gradients of one, and
    the gathered rest of the model with its gradients.

    Args:
        facts: The model and its optimiser.
        trace: A step of it.
        gpus: Processes, one GPU each.
        sharded: As FSDP does (parameters, gradients and states).
        checkpointing: How the step was run, for the table.
        overhead: Bytes to add.
        on_cpu: The optimiser's step as a CPU makes it.

    Raises:
        ValueError: If ``gpus`` is less than 1.
    """
    if gpus < 1:
        raise ValueError(f'gpus is {gpus}; give a number of at least 1')
    parts = gpus if sharded else 1
    parameters = (facts.trainable + facts.frozen + facts.averaged) // parts + facts.buffers
    gradients, states = facts.trainable // parts, facts.states // parts
    if gpus == 1:
        exchange = 0
    elif sharded:
        exchange = 2 * facts.root + 3 * facts.largest_unit
    else:
        exchange = 0 if facts.bucket_view else facts.trainable
    kept = gradients if facts.keeps_gradients else 0
    made = accumulate((facts.gradients[name] // parts for name in trace.names), initial=0)
    backward = ((peak, kept or ready) for peak, ready in zip(trace.backward, made, strict=True))
    step = facts.step_loop if on_cpu else facts.step_foreach // parts
    moments = {
        'forward': (trace.forward, kept),
        'backward': max(backward, key=sum),
        'optimiser': (trace.left + step, gradients),
    }
    moment, (alive, ready) = max(moments.items(), key=lambda item: sum(item[1]))
    activations = 0 if moment == 'optimiser' else trace.held
    temporaries = max(alive - activations, 0)
    always = parameters + states + exchange
    return Budget(
        checkpointing=checkpointing,
        sharded=sharded,
        gpus=gpus,
        parameters=parameters,
        gradients=gradients,
        states=states,
        exchange=exchange,
        activations=trace.held,
        temporaries=temporaries,
        not_at_once=alive + ready - gradients - trace.held - temporaries,
        overhead=overhead,
        total=always + alive + ready + overhead,
        moment=moment,
    )


def plans(facts: ModelFacts, traces: dict[str, StepTrace], *, gpus: int = 1, overhead: int = 0) -> list[Budget]:
    """One budget for each way of checkpointing; for several GPUs, first not sharded, then sharded."""
    return [
        plan(facts, trace, gpus=gpus, sharded=sharded, checkpointing=name, overhead=overhead)
        for sharded in ((False,) if gpus == 1 else (False, True))
        for name, trace in traces.items()
    ]


def heading(budget: Budget) -> str:
    """How a table calls a column."""
    named = {'none': 'no checkpointing', 'config': 'as the config', 'all': 'checkpointing'}[budget.checkpointing]
    return named if budget.gpus == 1 else f'{named}, {"FSDP" if budget.sharded else "DDP"} {budget.gpus}'


def plan_table(budgets: Sequence[Budget], title: str) -> Table:
    """The table a person reads, in GB of 10^9 bytes."""
    table = Table(title=title)
    table.add_column('GB on each GPU')
    for budget in budgets:
        table.add_column(heading(budget), justify='right')
    for row, label in ROWS.items():
        if row == 'total':
            table.add_section()
        table.add_row(label, *(f'{getattr(budget, row) / GB:.2f}' for budget in budgets))
    return table


def verdict(budget: Budget, card: float) -> str:
    """Whether it fits a card of so many GB, in words."""
    room = card - budget.total / GB
    if room >= 0:
        return f'{heading(budget)}: fits {card:g} GB with {room:.1f} GB to spare'
    return f'{heading(budget)}: does not fit {card:g} GB, {-room:.1f} GB are missing'
