"""A solve of a model as a flow of columns: its states, its steps, and its field before each of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from ...models import CheckedField, Field, ODEBlock, SolverFailure, StepMap
from ...models.ode.solver import ADAPTIVE, field_later
from ...models.ode.spread import evenly_spread
from ...models.ode.statement import statement_of
from .observe import observe
from .solver_call import SolverCall, State

COLUMNS = 256
"""Most columns of an `ODEBlock`'s state that are followed, spread evenly over them."""
STEPS = 8
"""Steps by which an adaptive solve is followed, each solved adaptively."""


class CannotFollow(Exception):
    """A solve whose states are no columns, or a model of which no solve is seen; says why."""


@dataclass(frozen=True, kw_only=True)
class ColumnFlow:
    """One solve.

    Attributes
    ----------
    states
        Initial states (n, M). Of an `ODEBlock` on columns different ones of its own state, at most `COLUMNS`;
        else one column for each image, its parts below one another.
    steps
        The steps in order; each maps states (n, M) to states (n, M).
    fields
        The field before each step, which maps states (n, M) to their derivative.
    call
        What the model asked for.
    """

    states: Tensor
    steps: list[StepMap]
    fields: list[Field]
    call: SolverCall

    @property
    def final_time(self) -> float:
        """The length of time, in the model's own."""
        return sum(step.duration for step in self.steps)


def column_flows(model: nn.Module, images: Tensor) -> list[ColumnFlow]:
    """The solves of one forward pass of `model` on `images` (N, C, H, W), each as a flow of columns.

    The field of another library's solve may hold on to values of this forward pass: the columns must stay as
    many as they are, and in order.

    Raises
    ------
    CannotFollow
        When no solve is seen, or the state of one is no columns.
    """
    calls = observe(model, images)
    if not calls:
        raise CannotFollow("no solver was seen in it")
    by_image = _has_rows(model, images, calls)
    return [
        _of_block(call, rows) if isinstance(call.block, ODEBlock) else _of_call(call, len(images))
        for call, rows in zip(calls, by_image, strict=True)
    ]


def _has_rows(model: nn.Module, images: Tensor, calls: list[SolverCall]) -> list[bool]:
    """Whether the state of each call to an `ODEBlock` has a row for each image, rather than columns (n, M).

    Layers that state matrices act on columns; of others two numbers of images tell.
    """
    doubtful = [
        isinstance(call.block, ODEBlock)
        and isinstance(call.state, Tensor)
        and (call.state.ndim != 2 or any(statement_of(layer) == "forward" for layer in call.block.layers))
        for call in calls
    ]
    if not any(doubtful):
        return doubtful
    more = observe(model, torch.cat([images, images[:1]]))
    if len(more) != len(calls):
        raise CannotFollow("the number of its solves depends on the number of images")
    return [
        doubt and (_length_of(call.state), _length_of(other.state)) == (len(images), len(images) + 1)
        for doubt, call, other in zip(doubtful, calls, more, strict=True)
    ]


def _length_of(state: State) -> int:
    return len(state) if isinstance(state, Tensor) and state.ndim else 0


def _of_block(call: SolverCall, by_image: bool) -> ColumnFlow:
    block: ODEBlock = call.block
    if not isinstance(call.state, Tensor) or (call.state.ndim != 2 and not by_image):
        raise CannotFollow("the flow's states are neither columns (n, M) nor one for each image")
    if not by_image:
        states = torch.unique(call.state, dim=1)  # most pixels of a digit are the same background
        states = states[:, evenly_spread(states.shape[1], COLUMNS)]
        return ColumnFlow(states=states, steps=block.step_maps(), fields=_step_fields(block), call=call)
    shape = call.state.shape[1:]

    def of_columns(field: Field) -> Field:
        return lambda columns: field(columns.T.reshape(-1, *shape)).flatten(1).T

    return ColumnFlow(
        states=call.state.flatten(1).T,
        steps=[dataclasses.replace(step, map=of_columns(step.map)) for step in block.step_maps()],
        fields=[of_columns(field) for field in _step_fields(block)],
        call=call,
    )


def _step_fields(block: ODEBlock) -> list[Field]:
    """The field before each step."""
    steps, fields = block.step_maps(), block.fields()
    count = len(steps) // len(fields)
    return [field_later(fields[i // count], i % count * step.duration) for i, step in enumerate(steps)]


def _of_call(call: SolverCall, count: int) -> ColumnFlow:
    parts = (call.state,) if isinstance(call.state, Tensor) else call.state
    if any(part.ndim == 0 or len(part) != count for part in parts):
        raise CannotFollow("its state has no row for each image")
    if any(part.is_complex() for part in parts):
        raise CannotFollow("its state is complex")
    shapes = [part.shape for part in parts]
    grid = call.grid
    if grid is None:
        grid = torch.linspace(float(call.times[0]), float(call.times[-1]), STEPS + 1).to(call.times)
    tolerances = {"rtol": call.rtol, "atol": call.atol} if call.adaptive else {}
    single = isinstance(call.state, Tensor)

    def state_of(columns: Tensor) -> State:
        rows = columns.T.split([shape[1:].numel() for shape in shapes], dim=1)
        found = tuple(row.reshape(shape) for row, shape in zip(rows, shapes, strict=True))
        return found[0] if single else found

    def columns_of(state: Any) -> Tensor:
        return torch.cat([part.reshape(count, -1) for part in ((state,) if single else state)], 1).T

    def derivative(time: Tensor, columns: Tensor) -> Tensor:
        return columns_of(call.field(time, state_of(columns)))

    def step(ends: Tensor, columns: Tensor) -> Tensor:
        field = call.field
        if call.equivalent in ADAPTIVE:
            field = CheckedField(field, call.equivalent)
        try:
            path = odeint(field, state_of(columns), ends, method=call.equivalent, **tolerances)
        except AssertionError as error:
            raise SolverFailure(f"{call.equivalent} failed: {error}") from None
        return columns_of(path[-1] if single else tuple(part[-1] for part in path))

    ends = [torch.stack([a, b]) for a, b in pairwise(grid)]
    layer = nn.Identity()
    return ColumnFlow(
        states=columns_of(call.state),
        steps=[StepMap(layer=layer, duration=_length(pair), map=partial(step, pair)) for pair in ends],
        fields=[partial(derivative, pair[0]) for pair in ends],
        call=call,
    )


def _length(ends: Tensor) -> float:
    return abs(float(ends[1] - ends[0]))
