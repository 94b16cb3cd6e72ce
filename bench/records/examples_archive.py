"""The adversarial examples of one model and training seed: one zip archive of plain ``.npy`` files. No torch.

``NAME/index.npy``, ``NAME/label.npy`` and ``NAME/steps.npy`` are the examples of one attack, see
`AdversarialExamples`; any program that reads zip and numpy can read them. The same examples written in the
same order give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._errors import RecordError
from .adversarial_examples import AdversarialExamples
from .atomic import write_atomically

SUFFIX = ".zip"
FORMER_SHA256 = "npz_sha256"
"""In an upgraded record's card: the hash of the file of schema 1, on which keys of model transfers rest."""
_ARRAYS = ("index", "label", "steps")
_DATE = (1980, 1, 1, 0, 0, 0)


def content_sha256(examples: AdversarialExamples) -> str:
    """SHA-256 of the arrays, each as ``name:shape:`` and little-endian int64, whatever they are stored as."""
    found = hashlib.sha256()
    for name in _ARRAYS:
        array = getattr(examples, name)
        found.update(f"{name}:{','.join(map(str, array.shape))}:".encode())
        found.update(np.ascontiguousarray(array.astype("<i8")).tobytes())
    return found.hexdigest()


def names(path: Path) -> set[str]:
    """Names of the attacks whose examples the archive holds; none of one that is absent or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[0] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return set()


def read(path: Path, name: str) -> AdversarialExamples:
    """The examples of one attack.

    Raises
    ------
    FileNotFoundError
        When the archive or the attack is not there.
    RecordError
        When it is damaged, or holds anything else, pickles included.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {part: _load(archive.read(f"{name}/{part}.npy")) for part in _ARRAYS}
    except FileNotFoundError:
        raise
    except KeyError:
        raise FileNotFoundError(f"{path} holds no {name}") from None
    except Exception as error:  # a damaged archive raises whatever its decoder happens to meet
        raise RecordError(f"cannot be read ({type(error).__name__}: {error})") from None
    index, label, steps = (arrays[part] for part in _ARRAYS)
    whole = all(np.issubdtype(array.dtype, np.integer) for array in arrays.values())
    if not whole or index.shape != label.shape or index.shape != steps.shape[:1] or steps.ndim != 4:
        raise RecordError("its arrays are not integers index (k,), label (k,), steps (k, c, h, w)")
    return AdversarialExamples(
        index=index.astype(np.int64), label=label.astype(np.int64), steps=steps.astype(np.int32)
    )


def write(path: Path, name: str, examples: AdversarialExamples) -> None:
    """Add the examples of one attack to the archive, instead of those it holds; the others stay.

    A reader, or a crash, sees the old archive or the new one. One that is damaged is begun anew with what can
    still be read.
    """
    held = names(path)
    if path.exists() and (not held or name in held):
        others = _readable(path, held - {name})
        buffer = io.BytesIO()
    else:
        others = {}
        buffer = io.BytesIO(path.read_bytes() if held else b"")
    with zipfile.ZipFile(buffer, "a") as archive:
        for other, kept in [*others.items(), (name, examples)]:
            _add(archive, other, kept)
    write_atomically(path, buffer.getvalue())


def remove(path: Path, gone: set[str]) -> None:
    """Remove the examples of the attacks `gone` from the archive, and the archive where none are left."""
    if not names(path) & gone:
        return
    buffer, others = io.BytesIO(), _readable(path, names(path) - gone)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, kept in others.items():
            _add(archive, name, kept)
    if others:
        write_atomically(path, buffer.getvalue())
    else:
        path.unlink()


def _readable(path: Path, wanted: set[str]) -> dict[str, AdversarialExamples]:
    found = {}
    for name in sorted(wanted):
        try:
            found[name] = read(path, name)
        except (FileNotFoundError, RecordError):  # it counts as absent, and its attack is run again
            continue
    return found


def _add(archive: zipfile.ZipFile, name: str, examples: AdversarialExamples) -> None:
    narrow = np.abs(examples.steps).max(initial=0) <= np.iinfo(np.int16).max
    arrays = {
        "index": (
            examples.index.astype("<i4" if examples.index.max(initial=0) < 2**31 else "<i8"),
            "deflated",
        ),
        "label": (examples.label.astype("<i4"), "deflated"),
        "steps": (examples.steps.astype("<i2" if narrow else "<i4"), "lzma"),
    }
    for part, (array, how) in arrays.items():
        member = zipfile.ZipInfo(f"{name}/{part}.npy", _DATE)
        member.create_system, member.external_attr = 3, 0o644 << 16
        # LZMA takes 50 ms to set up, however little there is to compress.
        member.compress_type = zipfile.ZIP_LZMA if how == "lzma" and array.size else zipfile.ZIP_DEFLATED
        archive.writestr(member, _save(array))


def _save(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _load(data: bytes) -> NDArray[Any]:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
