"""How much work a flow is: its operations, and the fewest bytes that must move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ...models import ODEBlock
from ...models.ode.solver import SHU_OSHER_ALPHAS
from ...models.ode.tanh_field import TanhField
from ..runtime.put_back import change_tensors, put_back, train_all
from .roofline import Work

_FREE = re.compile(
    "_local_scalar_dense|_to_copy|_unsafe_view|arange|as_strided_scatter|cat|clone|constant_pad_nd|copy_?|"
    "empty.*|eye|fill_|flip|full.*|gather|index|index_put_?|index_select|lift_fresh.*|linspace|new_.*|ones.*|"
    "repeat|scalar_tensor|select_backward|slice_backward|stack|zero_|zeros.*"
)
"""Operators that move or make numbers and compute none; views are recognised by their schema."""
_REDUCTION = re.compile("amax|amin|linalg_vector_norm|max|mean|min|norm|prod|sum|var")
"""Operators that take one operation for each element they read."""


class OperationCounter(TorchDispatchMode):
    """Counts the operations that are dispatched while the mode is on.

    Matrix products and convolutions count as `torch.utils.flop_counter` has them (2 n k m for a product,
    what it is added to included), a reduction one for each element it reads, views, copies and allocations
    none, and every other operator one for each element of its first result, whatever it takes: a tanh is
    one operation.

    Attributes
    ----------
    operations
        The count so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count it."""
        result = func(*args, **(kwargs or {}))
        self.operations += _operations(func, args, kwargs or {}, result)
        return result


def _operations(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    returns = func._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if view or _FREE.fullmatch(packet.__name__):
        return 0
    read = args if _REDUCTION.fullmatch(packet.__name__) else result
    first = next((leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)), None)
    return 0 if first is None else first.numel()


def flow_work(flow: ODEBlock, state: Tensor, *, gradient: bool) -> Work:
    """The work of carrying `state` through `flow`, with `gradient` forwards and backwards.

    Operations are those of the cheapest formulation known: `tanh_operations` for a flow that states tanh
    fields and solves by a method of `SHU_OSHER_ALPHAS`, else what the flow dispatches on a CPU
    (`OperationCounter`). Backwards means gradients to the state and to every parameter, from values that
    the forward pass kept: nothing is computed twice.

    Bytes assume a cache that holds everything in between: the state is read once, x(T) written once, the
    parameters read once; backwards the state is read again, the gradient of x(T) read, that of the state
    written and those of the parameters written. Both counts err on the side of too few, so the floor that
    follows from them is too low rather than too high.
    """
    size = state.numel() * state.element_size()
    weights = sum(p.numel() * p.element_size() for p in flow.parameters())
    moved = 5 * size + 2 * weights if gradient else 2 * size + weights
    with put_back(flow):
        change_tensors(flow, Tensor.cpu)
        train_all(flow)
        if state.ndim == 2 and flow.solver.method in SHU_OSHER_ALPHAS and flow.has_tanh_fields():
            forward, backward = tanh_operations(
                flow.tanh_fields(), state.shape[1], steps=flow.steps_per_layer(), method=flow.solver.method
            )
            return Work(operations=forward + backward if gradient else forward, bytes=moved)
        return Work(operations=_dispatched(flow, state.detach().cpu(), gradient), bytes=moved)


def tanh_operations(fields: Sequence[TanhField], columns: int, *, steps: int, method: str) -> tuple[int, int]:
    """Operations, forwards and backwards, of `steps` steps of `method` in each field; state (n, columns).

    A step is that of Shu and Osher on the folded matrices G = h A and E = I + h C: stage i is
    alpha_i x + (1 - alpha_i)(E u + G tanh(B u + b)) with u the stage before. Per column:

    - a product takes 2 for each entry of its matrix that is not zero (2 n^2 for a full one, 2 n for G = h I),
      what it is added to included; E = I takes none;
    - tanh takes n, backwards n for the slope and its product, though either is several instructions;
    - a stage with alpha_i > 0 takes 3 n for its combination, and as much backwards;
    - backwards every matrix multiplies once more, transposed, and the gradient of a matrix that needs one
      takes as much as its product, that of b takes n.

    Folding the matrices, and from their gradients to those of the parameters, is left out: it takes a number
    of operations that does not grow with the columns.
    """
    forward = backward = 0
    stages = len(SHU_OSHER_ALPHAS[method])
    for field in fields:
        n = len(field.B)
        B, A = (2 * int(torch.count_nonzero(matrix)) for matrix in (field.B, field.dense_A()))
        C = 0
        if field.C is not None:
            C = 2 * int(torch.count_nonzero(torch.eye(n) + (field.C != 0)))
        gradients = sum(
            cost
            for cost, tensor in ((B, field.B), (n, field.b), (A, field.A), (C, field.C))
            if tensor is not None and tensor.requires_grad
        )
        combination = 3 * n * (stages - 1)
        forward += steps * (stages * (B + n + C + A) + combination)
        backward += steps * (stages * (A + n + B + C + gradients) + combination)
    return forward * columns, backward * columns


def _dispatched(flow: ODEBlock, state: Tensor, gradient: bool) -> int:
    counter = OperationCounter()
    with counter:
        if gradient:
            state = state.clone().requires_grad_(True)
            out = flow(state)
            wanted = [state, *(p for p in flow.parameters() if p.requires_grad)]
            torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)
        else:
            with torch.no_grad():
                flow(state)
    return counter.operations
