"""Which device a run uses, what it is called in a record, and what else made the numbers."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._errors import InvalidArgument
from ...models import flow_implementation, get_ode_backend

CPU = torch.device("cpu")
_PACKAGES = ("robustode", "torch", "torchdiffeq", "torchattacks", "torchvision", "numpy", "numba", "scipy")


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device.

    Raises
    ------
    InvalidArgument
        For another name, and where there is no such device.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name, re.ASCII)
    if found is None:
        raise InvalidArgument(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        raise InvalidArgument(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    if found[1] and int(found[1]) >= (count := torch.cuda.device_count()):
        raise InvalidArgument(f"--device {name}: torch sees {count} here, cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def module_device(module: nn.Module, otherwise: torch.device = CPU) -> torch.device:
    """Where the parameters and buffers of a module lie: the first one's device; `otherwise` without any."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), otherwise)


def device_name(device: torch.device) -> str:
    """What the device is called beside a timing: the GPU's name, or the CPU's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + (_backend_note())
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"CPU {name}, {torch.get_num_threads()} threads{_backend_note()}"


def _backend_note() -> str:
    return ", eager flows" if get_ode_backend() == "torchdiffeq" else ""


@functools.cache
def source_sha256() -> str:
    """Hash of the Python sources of this package, exact for a wheel and for a checkout."""
    root = Path(__file__).parents[2]
    total = hashlib.sha256()
    inner = [p for folder in ("models", "attacks", "bench") for p in (root / folder).rglob("*.py")]
    for path in sorted([*root.glob("*.py"), *inner]):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


@functools.cache
def _commit() -> tuple[str | None, bool | None]:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        run = functools.partial(
            subprocess.run, cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changes = run(["git", "status", "--porcelain", "--", "*.py", "*.toml"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changes)


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # of an extra that is not installed
            found[name] = metadata.version(name)
    return found


def environment(device: torch.device, *, processes: int = 1) -> dict[str, Any]:
    """Versions, commit (with a dirty flag), source hash, device, threads, ODE backend, time in UTC.

    `processes` of this run work at once, this one included; with more than one, seconds are no timings.
    """
    commit, dirty = _commit()
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "flow": flow_implementation(device),
        "cpus": os.cpu_count(),
        "commit": commit,
        "dirty": dirty,
        "source_sha256": source_sha256(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }
