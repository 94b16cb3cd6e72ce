"""Whether a results folder holds another model under a name: two files may be called alike."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..._errors import InvalidArgument
from ...models import ModelSpec
from ..config.plan import Plan
from ..data import Data
from ..records.headline import preferred_keys
from ..records.latest import current
from ..records.record import Record
from ..records.store import Store


def place_of(spec: ModelSpec, out: Path) -> str | None:
    """Return a hash of where a model's file lies, seen from the results folder; None without a file.

    It names no folder, and stays where both are moved together.
    """
    if spec.folder is None:
        return None
    try:
        place = os.path.relpath(spec.folder, Path(out).resolve())
    except ValueError:  # another drive
        place = str(spec.folder)
    return hashlib.sha256(Path(place).as_posix().encode()).hexdigest()[:16]


def refuse_taken_names(plan: Plan, data: Data, store: Store) -> None:
    """Refuse a model whose name is that of another one in the folder of `store`, whose row it would replace.

    The same file, edited, is the same model; so is a file elsewhere with the same source, which builds the
    same network; and so is a model that has come into this package.

    Raises
    ------
    InvalidArgument
        Before anything is done.
    """
    preferred = preferred_keys(store.folder)
    for spec in plan.specs:
        shown, _ = current(store.of_model(spec.name), preferred)
        for record in (r for r in shown if r.cell.kind == "training" and r.status == "ok"):
            if _other(record, spec, plan, data, store):
                made_by = record.card.get("file") or record.card.get("plugin") or "this package"
                raise InvalidArgument(
                    f"the name {spec.name!r} is taken in {store.folder} by another model, from {made_by}: "
                    "give it another name (in @register_model, or by its factory and file), choose another "
                    "folder with --out, or replace that model with --fresh"
                )


def _other(record: Record, spec: ModelSpec, plan: Plan, data: Data, store: Store) -> bool:
    cell, card = record.cell, record.card
    if cell.dataset == data.name:
        network = plan.network_sha256(spec, data)
        same_call = cell.hyperparameters == plan.hyperparameters(spec)
        same = network is not None and network == cell.network_sha256 and same_call
    else:
        same = True
    if same and cell.model_version == spec.full_version:  # its source: `loss` and the like are no network
        return False
    if spec.in_package:
        return spec.variant_of is not None and ("file" in card or "plugin" in card)
    if spec.plugin or card.get("plugin"):
        return _distribution(spec.plugin) != _distribution(card.get("plugin"))
    return card.get("file") != spec.file or card.get("place", _place(spec, store)) != _place(spec, store)


def _place(spec: ModelSpec, store: Store) -> str | None:
    return place_of(spec, store.folder)


def _distribution(plugin: object) -> str:
    """Name of an installed package, without its version."""
    return str(plugin or "").rpartition(" ")[0]
