"""Provenance of a trained model and its results: solver, constants of the flow, training record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models import ModelSpec, NoCertificate, ODEBlock, ode_blocks
from ...models.ode.statement import stated_constants, stated_lipschitz_bounds, stated_solver_bound
from ..data import Data
from ..records.checkpoint import Checkpoint
from ..records.record import Cell, Record
from ..runtime.device import environment, module_device
from ..solvers.observe import observe
from .same_answers import answers_of

MOST_ASKED = 8
"""Images that are asked, two at a time, until a pass succeeds."""


def solver_names(model: nn.Module, images: Tensor | None = None) -> str | None:
    """Return the solvers of the model's ODE blocks as text; None where none is seen.

    With `images` (N, C, H, W), those of other libraries that a forward pass on two of them calls as well.
    """
    solvers = [str(block.solver) for block in ode_blocks(model)]
    for pair in () if images is None else images[:MOST_ASKED].split(2):
        with suppress(Exception):  # of the model's own code, or of an image that it does not answer
            calls = observe(model, pair.to(module_device(model, pair.device)))
            solvers += [call.name for call in calls if call.block is None]
            break
    return "; ".join(solvers) or None


def flow_implementations(model: nn.Module, device: torch.device) -> str | None:
    """Return which implementations solve the model's ODE blocks on `device`; None for a model without one.

    See `ODEBlock.implementation`; several are separated by semicolons.
    """
    paths = {block.implementation(device) for block in ode_blocks(model)}
    return "; ".join(sorted(paths)) or None


def environment_of(model: nn.Module, device: torch.device, *, processes: int = 1) -> dict[str, Any]:
    """Return the `environment` of a result; ``flow`` is the implementation that solves `model`'s flow."""
    return {**environment(device, processes=processes), "flow": flow_implementations(model, device)}


def flow_constants(model: nn.Module) -> dict[str, float]:
    """Return proven constants of the model's flow: Lipschitz bounds, and gamma, c1, c2, rho of a contraction.

    Empty for a model whose ``flow`` is not an ODE block; bounds that are unknown or overflow are left out.
    """
    flow = getattr(model, "flow", None)
    if not isinstance(flow, ODEBlock):
        return {}
    found: dict[str, float] = {}
    with suppress(NoCertificate):
        found |= {f"lipschitz_{name}": value for name, value in stated_lipschitz_bounds(flow).items()}
    with suppress(NoCertificate):
        found["lipschitz_solver"] = stated_solver_bound(flow)
    found |= stated_constants(flow) | {"final_time": flow.final_time}
    if "rho" in found:
        found["exp_minus_rho_T"] = math.exp(-found["rho"] * flow.final_time)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def training_record(
    cell: Cell,
    spec: ModelSpec,
    model: nn.Module,
    data: Data,
    checkpoint: Checkpoint,
    place: str | None = None,
) -> Record:
    """Return the record of a training: loss curves, constants of the flow, the model's description.

    `place` says where the model's file lies, see `taken_names`. Pretrained weights have no curve, epoch or
    time; the card names their file under the stored key ``given``.
    """
    history = checkpoint.facts.get("history", {})
    curves = {name: np.asarray(values, np.float64) for name, values in history.items() if name != "seconds"}
    passes = len(curves.get("train_loss", ())) * cell.samples
    chosen = {"best_epoch": float(checkpoint.facts["selected_epoch"])} if history else {}
    pretrained = {"file": checkpoint.facts["given"], "sha256": checkpoint.sha256} if not history else None
    answers = answers_of(model, data.input_shape, data.num_classes) if cell.network_sha256 else None
    return Record(
        cell=cell,
        outcomes=curves,
        measures={
            **chosen,
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **flow_constants(model),
        },
        card={
            "architecture": spec.architecture,
            "summary": spec.summary,
            "reference": spec.reference,
            "claims": sorted(spec.claims),
            "expected_failures": dict(spec.expected_failures),
            "solver": solver_names(model, data.train.images),
            "input_shape": list(data.input_shape),
            "num_classes": data.num_classes,
            "checkpoint_sha256": checkpoint.sha256,
            **({"given": pretrained} if pretrained else {}),
            **({"answers": answers} if answers else {}),
            **({"file": spec.file} if spec.file else {}),
            **({"place": place} if place else {}),
            **({"plugin": spec.plugin} if spec.plugin else {}),
        },
        forwards=passes,
        backwards=passes,
        seconds=sum(history.get("seconds", ())),
        environment=checkpoint.facts["environment"],
    )


def summary_line(records: Sequence[Record]) -> str:
    """Return the results of one threat in one line, strength by strength."""
    parts = []
    for record in records:
        cell = record.cell
        at = f"{cell.strength:g} " if cell.kind == "accuracy" and cell.family != "clean" else ""
        if record.status != "ok":
            parts.append(f"{at}{record.status}")
        elif cell.kind == "certificate":
            radius = record.outcomes.get("radius")
            none = f"none: {record.card.get('no_certificate', '')}"
            parts.append(none if radius is None else f"half are certified to l2 {np.median(radius):.3g}")
        elif cell.kind == "dynamics":
            growth = record.outcomes.get("growth_adversarial")
            reason = str(record.card.get("no_dynamics", ""))
            apart = "the flow takes attacked images up to {:.3g} times as far from the clean ones"
            parts.append(reason if growth is None else apart.format(growth[-1].max()))
        elif cell.kind == "throughput":
            rate, achieved = (record.measures.get(name) for name in ("samples_per_second", "achieved"))
            reason = str(record.card.get("no_flow") or record.card.get("no_step") or "")
            parts.append(reason if rate is None else f"{rate:,.0f} samples/s in batches of {cell.batch_size}")
            if achieved is not None:
                parts.append(f"roofline efficiency {achieved:.0%}")
        else:
            parts.append(f"{at}{record.accuracy:.1%}")
    return ", ".join(parts)
