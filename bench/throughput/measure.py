"""How fast a model is: inference, a training step, its flow alone; per device, over batch sizes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._errors import ModelFailure
from ...attacks.core.image_dtype import image_dtype
from ...attacks.core.model_call import call_model
from ...attacks.core.modes import set_mode
from ...attacks.core.sample_answers import may_concern_a_sample
from ..config.cells import FLOW_TIMINGS
from ..data import Split
from ..evaluation.accuracy import frozen
from ..records.record import Cell, Record
from ..runtime.checked_model import answered_rows
from ..runtime.memory import peak_memory
from ..runtime.put_back import change_tensors, put_back, train_all
from ..solvers.observe import count_nfe
from ..training.train import training_step
from .clock import time_passes, without_graph
from .flow_timing import floor_measures, flow_calls, forwards, forwards_and_backwards
from .machine_load import LoadMonitor


def inference(model: nn.Module, images: Tensor, num_classes: int) -> Callable[[], object]:
    """A call that classifies `images` once, without a graph, in the type that the model takes."""
    call_model(model, images[:1], num_classes)
    images = images.to(image_dtype(model, images) or images.dtype)
    return without_graph(lambda: model(images))


@contextmanager
def training(
    model: nn.Module, images: Tensor, labels: Tensor, num_classes: int
) -> Iterator[Callable[[], object]]:
    """A call that does one Adam step on `images`; after the block `model` is as it was."""
    with put_back(model):
        change_tensors(model, torch.clone)
        set_mode(model, training=True)
        train_all(model)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-6)
        yield lambda: training_step(model, images, labels, optimiser, num_classes)


NO_VARIANCE = "Expected more than 1 value per channel"
"""How torch says that batch normalisation trains on no single sample."""


def _takes_a_step(run: Callable[[], object], batch_size: int) -> bool:
    """Whether `run` trains; False only for a batch of one sample, of which a layer wants the variance."""
    if batch_size == 1:
        try:
            run()
        except ModelFailure as error:
            if NO_VARIANCE not in str(error):
                raise
            return False
    return True


def measure_cell(
    cell: Cell,
    model: nn.Module,
    split: Split,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
) -> Record:
    """Time one throughput cell at ``cell.batch_size``: ``inference``, ``training-step`` or a flow timing.

    The record of a model of which no ODE block is called with a state alone carries, for a flow timing, the
    reason and nothing else; so does that of a training step on one sample with batch normalisation. Where the
    model fails at a batch, samples without an answer are left out of it
    and counted, by the measure ``left_out``.
    """
    rest: dict[str, Any] = {"num_classes": num_classes, "device": device, "environment": environment}
    rows = torch.arange(min(cell.batch_size, len(split)))
    try:
        return _measured(cell, model, split, rows, **rest)
    except Exception as error:
        if not may_concern_a_sample(error):
            raise
        failure = error
    known = answered_rows(model, split.images[rows].to(device), num_classes).cpu()
    if len(known) == len(rows):
        raise failure
    record = _measured(cell, model, split, known, **rest)
    measures = {**record.measures, "left_out": float(len(rows) - len(known))}
    return dataclasses.replace(record, measures=measures)


def _measured(
    cell: Cell,
    model: nn.Module,
    split: Split,
    rows: Tensor,
    *,
    num_classes: int,
    device: torch.device,
    environment: Mapping[str, Any],
) -> Record:
    """The record of a cell whose batch holds the samples `rows` (k,) in turn."""
    started = time.perf_counter()
    rows = rows[torch.arange(cell.batch_size) % len(rows)]
    images, labels = split.images[rows].to(device), split.labels[rows].to(device)
    of_flow, gradient = cell.threat in FLOW_TIMINGS, cell.threat == "flow-gradient"
    floor: dict[str, float] = {}
    with frozen(model), ExitStack() as stack:
        if of_flow:
            if gradient:
                stack.enter_context(put_back(model))
                train_all(model)
            calls = flow_calls(model, images, num_classes)
            if not calls:
                reason = {"no_flow": "the model calls no ODE block with a state alone"}
                seconds = time.perf_counter() - started
                return Record(cell=cell, card=reason, seconds=seconds, environment=environment)
            run = forwards_and_backwards(calls) if gradient else forwards(calls)
        elif cell.threat == "inference":
            run = inference(model, images, num_classes)
        else:
            run = stack.enter_context(training(model, images, labels, num_classes))
            if not _takes_a_step(run, cell.batch_size):
                reason = {"no_step": "batch normalisation does not train on a batch of one sample"}
                seconds = time.perf_counter() - started
                return Record(cell=cell, card=reason, seconds=seconds, environment=environment)
        memory = peak_memory(run, device)
        load = LoadMonitor()
        durations = time_passes(
            run, device, seconds=float(cell.parameters["seconds"]), passes=int(cell.parameters["passes"])
        )
        others = load.others_share()
        median, p95 = (float(quantile) for quantile in np.quantile(durations, [0.5, 0.95]))
        if of_flow:
            floor = floor_measures(calls, device, gradient=gradient, median=median)
    with frozen(model):
        nfe = count_nfe(model, images)
    return Record(
        cell=cell,
        outcomes={"seconds": durations},
        measures={
            "samples_per_second": cell.batch_size / median,
            "latency_median": median,
            "latency_p95": p95,
            "peak_memory_bytes": float(memory),
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **floor,
            **({} if others is None else {"others_load": others}),
        },
        nfe=nfe,
        seconds=time.perf_counter() - started,
        environment=environment,
    )
