"""Reads what robustode 0.1 stored: one JSON file per record, one ``.npz`` per attack. For upgrades alone."""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._errors import RecordError
from .adversarial_examples import AdversarialExamples
from .record import Cell, Record, digest


def read_record(data: bytes) -> Record:
    """The record of a file, its outcomes as they were: ``prediction`` and ``correct``, perhaps ``norm``.

    Raises
    ------
    RecordError
        When it is truncated, edited, or something else.
    """
    try:
        body = json.loads(data)
        if body.pop("schema_version") != 1 or body.pop("sha256") != digest({**body, "schema_version": 1}):
            raise RecordError("its hash does not match its content: edited by hand or damaged")
        key = body.pop("key")
        body["cell"] = Cell(**body["cell"])
        for name in ("outcomes", "examples"):
            body[name] = {k: _decode(v) for k, v in body[name].items()}
        record = Record(**body)
        if record.cell.key() != key:
            raise RecordError("its key does not match its cell")
        if record.status == "ok" and record.cell.kind == "accuracy":
            shape = (record.cell.draws, record.cell.samples)
            if any(record.outcomes[name].shape != shape for name in ("prediction", "correct")):
                raise RecordError(f"its outcomes are not of shape {shape}")
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"not a record: {type(error).__name__}: {error}") from None
    return record


def read_examples(data: bytes) -> AdversarialExamples:
    """The adversarial examples of a file; raises `RecordError` for anything else, pickles included."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            index, label, steps = (file[name] for name in ("index", "label", "steps"))
    except Exception as error:  # a damaged archive raises whatever its decoder happens to meet
        raise RecordError(f"not a file of adversarial examples ({type(error).__name__}: {error})") from None
    return AdversarialExamples(
        index=index.astype(np.int64), label=label.astype(np.int64), steps=steps.astype(np.int32)
    )


def file_stem(cell: Cell) -> str:
    """How the files of `cell` were called, without their suffix."""
    what = cell.kind if cell.kind == "training" else f"{cell.threat}-{cell.strength:g}"
    return f"{cell.dataset}-{what}-seed{cell.training_seed}-{cell.key()[:12]}"


def _decode(value: Mapping[str, Any]) -> NDArray[Any]:
    shape = tuple(value["shape"])
    raw = zlib.decompress(base64.b64decode(value["data"], validate=True))
    if value["dtype"] == "bool":
        size = math.prod(shape)
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=size).astype(bool).reshape(shape)
    stored = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(raw, stored).reshape(shape).astype(stored.newbyteorder("="))
