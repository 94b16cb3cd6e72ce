"""How long a plan will take here: each model is timed on one batch, and queries are multiplied out."""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..._errors import RobustodeError, TimeLimitExceeded, one_line
from ...attacks.core.model_call import call_model
from ..config.perturbation import training_queries
from ..config.plan import Plan
from ..data import Data
from ..records.record import Cell
from ..runtime.time_limit import time_limit

ESTIMATE_LIMIT = 20.0
"""Seconds after which a model is not waited for; its estimate is then nothing."""
ESTIMATE_SAMPLES = 30
"""Samples in the batch that a solver surrogate is timed on: its graph may be long."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds per sample, forwards and backwards, of one model on one device.

    `training` are those in a batch of its recipe's size, where another one was timed too; `surrogates` those
    of its solver surrogates, all of them together. `problem` says why a model could not be timed, which then
    costs nothing; it has `failed`, unless it only took too long.
    """

    forward: float
    backward: float
    training: tuple[float, float] | None = None
    surrogates: tuple[float, float] = (0.0, 0.0)
    problem: str = ""
    failed: bool = False

    @classmethod
    def unknown(cls, error: Exception) -> Cost:
        """That of a model that raised `error` when it was built or asked."""
        kind = "" if isinstance(error, RobustodeError) else f"{type(error).__name__}: "
        failed = not isinstance(error, TimeLimitExceeded)
        return cls(forward=0.0, backward=0.0, problem=f"{kind}{one_line(error)}", failed=failed)

    def seconds_for(self, cell: Cell, plan: Plan) -> float:
        """Estimated seconds for `cell`."""
        if cell.kind == "training":
            forwards, backwards = training_queries(cell.recipe)
            forward, backward = self.training or (self.forward, self.backward)
            return cell.samples * (forwards * forward + backwards * backward)
        if cell.kind == "throughput":
            timing = plan.preset.throughput
            return 1.5 * timing.seconds if timing else 0.0
        if cell.threat == "smoothing":
            votes = cell.parameters["n0"] + cell.parameters["n"]
            return float(cell.samples * votes * self.forward)
        if cell.kind == "certificate":
            return 2 * cell.samples * self.forward
        if cell.kind == "dynamics":
            return 100 * cell.samples * (self.forward + self.backward)
        attack = next(a for a in plan.attacks if a.threat.name == cell.threat)
        forward, backward = (
            self.surrogates if attack.threat.crafted_on == "solvers" else (self.forward, self.backward)
        )
        return cell.samples * cell.draws * (attack.queries[0] * forward + attack.queries[1] * backward)


def makespan(seconds: Sequence[float], processes: int) -> float:
    """Seconds until all of `seconds` are done, `processes` at once, each begun as soon as one is free."""
    ends = [0.0] * max(processes, 1)
    for work in seconds:
        heapq.heapreplace(ends, ends[0] + work)
    return max(ends)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch so many threads for a block; as many as it has where None."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_cost(model: nn.Module, data: Data, batch_size: int, device: torch.device) -> Cost:
    """Time forward and backward passes of `model` on a batch of training images, and take the median.

    The first of several passes does not count: it may compile. A model that fails here costs nothing and says
    why.
    """
    images = data.train.images[:batch_size].clone().to(device)
    trained: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
    inputs = trained or [images.requires_grad_()]
    labels = data.train.labels[:batch_size].to(device)
    times: list[tuple[float, float]] = []
    try:
        with time_limit(ESTIMATE_LIMIT, "one batch"):
            while len(times) < 2 or (len(times) < 6 and sum(map(sum, times)) < 1.0):
                begin = time.perf_counter()
                loss = F.cross_entropy(call_model(model, images, data.num_classes), labels)
                _synchronise(device)
                middle = time.perf_counter()
                torch.autograd.grad(loss, inputs, allow_unused=True)
                _synchronise(device)
                times.append((middle - begin, time.perf_counter() - middle))
    except Exception as error:  # of the model's own code
        return Cost.unknown(error)
    forward, backward = (statistics.median(parts) for parts in zip(*times[1:], strict=True))
    return Cost(forward=forward / len(images), backward=backward / len(images))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
