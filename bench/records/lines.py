"""One line of a file of records: JSON with a checksum of its own. No torch.

``{"checksum":"...","schema":2,...}``: the checksum is the first 32 hexadecimal digits of the SHA-256 of the
bytes that follow its comma, so a line that was cut or edited is recognised by itself. Every schema to come
keeps these first two members. The rest is one of

- a *record*: ``key`` (the first 32 digits of `Cell.key`), ``cell``, and the fields of `Record` that are not
  at their default. ``cell`` and ``environment`` are each a pair: the name of what is shared, and their own
  fields.
- something *shared*: ``shared`` (its name, the first 12 digits of the hash of its content) and ``content``,
  the fields of a cell or an environment that many records of the file have in common. It stands once before
  the first record that needs it and once after, so that one damaged line costs no other record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..._errors import InvalidArgument, RecordError
from .arrays import decode_array, encode_array, for_drawing
from .record import KINDS, LATER_FIELDS, NOT_STORED, STATUSES, Cell, Record, canonical_json, digest

SCHEMA = 2
COPIES = 2

_SHARED_OF_CELL = (
    "dataset", "index_sha256", "model", "model_version", "hyperparameters", "recipe", "training_seed",
    "checkpoint_sha256", "solver", "dtype",
)  # fmt: skip
_OWN_OF_ENVIRONMENT = ("created",)
_ARRAYS = ("outcomes", "examples")
_KEY = 32
_NAME = 12
_OPEN, _DIGITS, _CLOSE = b'{"checksum":"', 32, b'",'
_START = len(_OPEN) + _DIGITS + len(_CLOSE)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _defaults(kind: type) -> dict[str, str]:
    found = {}
    for f in dataclasses.fields(kind):
        if f.default is not dataclasses.MISSING:
            found[f.name] = canonical_json(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = canonical_json(f.default_factory())
    return found


_CELL_DEFAULTS, _RECORD_DEFAULTS = _defaults(Cell), _defaults(Record)


def line_key(cell: Cell) -> str:
    """What a line calls the record of `cell`."""
    return cell.key()[:_KEY]


def write_record(record: Record, copies: Mapping[str, int] | None = None) -> tuple[bytes, list[str]]:
    """The lines of one record, each with its line end.

    Parameters
    ----------
    copies
        By name how often the file holds what is shared. Without it all of it is written, once.

    Returns
    -------
    lines, shared
        The bytes to append, and the names of what is shared among them.
    """
    cell = {f.name: getattr(record.cell, f.name) for f in dataclasses.fields(Cell)}
    common = {name: cell.pop(name) for name in _SHARED_OF_CELL}
    common |= {name: value for name in sorted(LATER_FIELDS) if (value := cell.pop(name)) is not None}
    own = {name: value for name, value in cell.items() if canonical_json(value) != _CELL_DEFAULTS.get(name)}
    environment = dict(record.environment)
    dated = {name: environment.pop(name) for name in _OWN_OF_ENVIRONMENT if name in environment}
    written: list[str] = []
    before = after = b""
    pairs = {}
    for field, shared, rest in (("cell", common, own), ("environment", environment, dated)):
        name = digest(shared)[:_NAME]
        pairs[field] = [name, rest]
        missing = 1 if copies is None else COPIES - copies.get(name, 0)
        if missing > 0:
            line = _seal({"shared": name, "content": shared})
            before += line
            after += line if missing > 1 else b""
            written.append(name)
    body: dict[str, Any] = {"key": line_key(record.cell), **pairs}
    for f in dataclasses.fields(Record):
        value = getattr(record, f.name)
        if f.name in _ARRAYS:
            value = for_drawing(value) if record.cell.kind == "dynamics" and f.name == "outcomes" else value
            arrays = {k: encode_array(v) for k, v in value.items() if k not in NOT_STORED}
            body |= {f.name: arrays} if arrays else {}
        elif f.name not in pairs and canonical_json(value) != _RECORD_DEFAULTS.get(f.name):
            body[f.name] = value
    return before + _seal(body) + after, written


def _seal(body: Mapping[str, Any]) -> bytes:
    content = f'"schema":{SCHEMA},{_ENCODER.encode(body)[1:]}'.encode("ascii")
    checksum = hashlib.sha256(content).hexdigest()[:_DIGITS].encode("ascii")
    return _OPEN + checksum + _CLOSE + content + b"\n"


def read_line(line: bytes) -> dict[str, Any]:
    """The members of a line (without its line end) that its checksum vouches for.

    Raises
    ------
    RecordError
        When the line was cut or edited, or is something else.
    InvalidArgument
        When it is sound and of a schema that this version does not know.
    """
    content = line[_START:]
    if not line.startswith(_OPEN) or line[_START - len(_CLOSE) : _START] != _CLOSE:
        raise RecordError("not a line of records: cut or damaged")
    if line[len(_OPEN) : len(_OPEN) + _DIGITS] != hashlib.sha256(content).hexdigest()[:_DIGITS].encode():
        raise RecordError("its checksum does not match its content: cut, edited by hand or damaged")
    try:
        body = json.loads(b"{" + content)
        schema = body.pop("schema")
    except (ValueError, KeyError, RecursionError) as error:
        raise RecordError(f"not a line of records ({type(error).__name__}: {error})") from None
    if schema != SCHEMA:
        raise InvalidArgument(f"schema {schema!r} is not known to this robustode: upgrade it")
    found: dict[str, Any] = body
    return found


def read_record(body: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]) -> Record:
    """The record that `read_line` found, with what its file shares.

    Raises
    ------
    RecordError
        When it makes no record.
    """
    fields = dict(body)
    try:
        key = fields.pop("key")
        for name in ("cell", "environment"):
            common, own = fields[name]
            if common not in shared:
                raise RecordError(f"what it shares with other lines ({common}) is missing")
            fields[name] = {**shared[common], **own}
        fields["cell"] = Cell(**fields["cell"])
        for name in _ARRAYS:
            fields[name] = {k: decode_array(v) for k, v in fields.get(name, {}).items()}
        record = Record(**fields)
        if line_key(record.cell) != key:
            raise RecordError("its key does not match its cell")
        check_record(record)
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"not a record: {type(error).__name__}: {error}") from None
    return record


def check_record(record: Record) -> None:
    """Raise `RecordError` for an unknown status or kind, or outcomes of another shape than the cell says."""
    if record.status not in STATUSES or record.cell.kind not in KINDS:
        raise RecordError(f"unknown status {record.status!r} or kind {record.cell.kind!r}")
    if record.status == "ok" and record.cell.kind == "accuracy":
        shape = (record.cell.draws, record.cell.samples)
        correct, wrong = (record.outcomes.get(name) for name in ("correct", "misclassified_as"))
        if correct is None or correct.dtype != bool or correct.shape != shape:
            raise RecordError(f"outcome 'correct' is missing or not of shape {shape}")
        count = int((~correct).sum())
        if wrong is None or wrong.shape != (count,):
            raise RecordError(f"outcome 'misclassified_as' is missing or not of shape ({count},)")
