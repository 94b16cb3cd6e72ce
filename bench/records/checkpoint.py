"""Weights on disk: safetensors, beside a JSON of everything that made them. Pickles are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..._errors import CheckpointError
from .store import write_atomically

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Trained weights: where they lie, their hash, and the JSON beside them."""

    path: Path
    sha256: str
    facts: Mapping[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` atomically and return the SHA-256 of the file; equal tensors, equal bytes."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    data = safetensors.torch.save(plain)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read tensors and the SHA-256 of their file.

    Raises
    ------
    CheckpointError
        When the file is absent, truncated, or a pickle, which could run code when it is read.
    """
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"{path} is not a {SUFFIX} file: pickled checkpoints can run code and are refused; convert it "
            "with safetensors.torch.save_file(model.state_dict(), ...)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return safetensors.torch.load(data), hashlib.sha256(data).hexdigest()
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        pickled = data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        what = (
            "a pickle under another name, refused because it can run code"
            if pickled
            else f"damaged ({error})"
        )
        raise CheckpointError(f"{path} is {what}: delete it to train again") from None


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors` into `model`; raise `CheckpointError` when names or shapes do not fit."""
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        detail = [line.strip() for line in str(error).splitlines()[1:2]]
        raise CheckpointError(f"{path} does not fit the model: {' '.join(detail) or error}") from None


def save_checkpoint(path: Path, model: nn.Module, facts: Mapping[str, Any]) -> Checkpoint:
    """Write the weights, then the JSON beside them; a checkpoint counts only when both are there.

    An older JSON goes first, so that a crash in between leaves weights that do not count.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    return save_facts(path, facts, save_tensors(path, model.state_dict()))


def save_facts(path: Path, facts: Mapping[str, Any], sha256: str) -> Checkpoint:
    """Write the JSON beside the weights at `path`, whose hash is `sha256`: from now on they count."""
    body = {**facts, "sha256": sha256}
    text = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return Checkpoint(path=path, sha256=sha256, facts=body)


def find_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path` when it is complete, None when there is none.

    Raises
    ------
    CheckpointError
        When the weights do not match the hash in the JSON.
    """
    beside = path.with_suffix(".json")
    if not path.exists() or not beside.exists():
        return None
    _, sha256 = load_tensors(path)
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        stored = facts["sha256"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise CheckpointError(f"{beside} is damaged: delete it to train again") from None
    if stored != sha256:
        raise CheckpointError(f"{path} was altered after training: delete it to train again")
    return Checkpoint(path=path, sha256=sha256, facts=facts)
