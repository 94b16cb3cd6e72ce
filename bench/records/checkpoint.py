"""Weights on disk: safetensors, compressed by xz. Pickles are refused.

``xz -d FILE.safetensors.xz`` gives a plain safetensors file. The hash of a checkpoint is that of this plain
file, so that it does not depend on how it was compressed.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..._errors import CheckpointError
from .atomic import write_atomically
from .record import Cell
from .store import Store
from .weights_file import SUFFIX, SUFFIX_XZ, compress

PARTIAL = ".partial"
"""In the name of a file beside a checkpoint, before its suffix: the state after an epoch of its training."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Trained weights: where they lie, the SHA-256 of the plain safetensors file, and what made them.

    `facts` are known of new weights alone; those of older ones are in the record of their training.
    """

    path: Path
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` atomically, in xz where `path` says so, and return the hash of the plain file.

    Equal tensors give an equal hash.
    """
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return save_bytes(path, safetensors.torch.save(plain))


def save_bytes(path: Path, plain: bytes) -> str:
    """Write the bytes of a plain safetensors file as `save_tensors` does."""
    write_atomically(path, compress(plain) if path.name.endswith(SUFFIX_XZ) else plain)
    return hashlib.sha256(plain).hexdigest()


def load_bytes(path: Path) -> bytes:
    """Read the bytes of a plain safetensors file, compressed or not.

    Raises
    ------
    CheckpointError
        When the file is absent, no safetensors file by its name, or damaged.
    """
    if not path.name.endswith((SUFFIX, SUFFIX_XZ)):
        raise CheckpointError(
            f"{path} is not a {SUFFIX} file: pickled checkpoints can run code and are refused; convert it "
            "with safetensors.torch.save_file(model.state_dict(), ...)"
        )
    try:
        data = path.read_bytes()
        return lzma.decompress(data, lzma.FORMAT_XZ) if path.name.endswith(SUFFIX_XZ) else data
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except lzma.LZMAError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it to train again") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read tensors and the SHA-256 of their plain file.

    Raises
    ------
    CheckpointError
        When the file is absent, truncated, or a pickle, which could run code when it is read.
    """
    data = load_bytes(path)
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
    """Write the weights of `model`; they count once the record of their training says their hash."""
    return Checkpoint(path=path, sha256=save_tensors(path, model.state_dict()), facts=facts)


def find_checkpoint(path: Path, sha256: str | None) -> Checkpoint | None:
    """Return the checkpoint at `path`, None when there is none or its training is not finished.

    Parameters
    ----------
    sha256
        What the record of the training says; None without such a record.

    Raises
    ------
    CheckpointError
        When the weights are damaged or do not match.
    """
    if sha256 is None or not path.exists() or partial_path(path).exists():
        return None
    if load_tensors(path)[1] != sha256:
        raise CheckpointError(f"{path} was altered after training: delete it to train again")
    return Checkpoint(path=path, sha256=sha256)


def stored_checkpoint(store: Store, training: Cell) -> Checkpoint | None:
    """The weights that the training `training` made, where its record is stored; see `find_checkpoint`."""
    record = store.get(training)
    sha256 = record.card.get("checkpoint_sha256") if record and record.status == "ok" else None
    return find_checkpoint(store.checkpoint_path(training), sha256)


def partial_path(path: Path) -> Path:
    """Where the state after each epoch lies until the training is recorded, as plain safetensors."""
    return path.with_name(f"{path.name.partition(SUFFIX)[0]}{PARTIAL}{SUFFIX}")
