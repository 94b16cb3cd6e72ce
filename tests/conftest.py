"""What every test shares: one thread, real digits in a small size, registries left as they were found."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from robustode.bench.records.record import Record
    from robustode.bench.report.rendering import Figures, Rendered

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter, on CPU tensors; it reads this where kernels are defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# `pytest --hypothesis-profile thorough` draws more and other examples; tox and CI draw fewer.
for profile, examples in (("robustode", 40), ("ci", 15), ("thorough", 500)):
    settings.register_profile(
        profile, deadline=None, max_examples=examples, derandomize=profile != "thorough", print_blob=True
    )
settings.load_profile("ci" if os.environ.get("CI") else "robustode")


def pytest_configure(config: pytest.Config) -> None:
    """Without ``--benchmark-only`` each benchmark runs once, small and untimed, as a test of itself."""
    if not config.getoption("benchmark_only"):
        config.option.benchmark_disable = True


@pytest.fixture(scope="session", autouse=True)
def _torch(request: pytest.FixtureRequest) -> None:
    """One thread, since the tensors are small; and a warning each time, not only the first."""
    if not request.config.getoption("benchmark_only"):
        torch.set_num_threads(1)
        torch.set_warn_always(True)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """What is written is not forced to the disk: a run of the tests need not outlast a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers each time, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def empty_figure() -> tuple[bytes, bytes]:
    """A figure without anything in it, as SVG and as PNG."""
    from matplotlib.figure import Figure
    from robustode.bench.report.rendering import render_here

    ((_, drawn),) = render_here([({}, lambda: Figure(figsize=(1, 1)))])()
    return drawn


def _render_empty(patch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    drawn = request.getfixturevalue("empty_figure")

    def render_empty(figures: Figures) -> Rendered:
        made = [(words, drawn) for words, _ in figures]
        return lambda: made

    patch.setattr("robustode.bench.report.rendering.render_here", render_empty)


@pytest.fixture
def empty_figures(monkeypatch, request: pytest.FixtureRequest) -> None:
    """Reports that this process makes show empty figures: drawing and rendering take most of their time."""
    _render_empty(monkeypatch, request)


@pytest.fixture(scope="module", autouse=True)
def _figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only tests of the report, and timed benchmarks, render what figures show."""
    with pytest.MonkeyPatch.context() as patch:
        if "report" not in request.path.parts and not request.config.getoption("benchmark_only"):
            _render_empty(patch, request)
        yield


@pytest.fixture(scope="session")
def published() -> Callable[[Path], list[Record]]:
    """``published(folder)``: the records of a results folder, read once; none may be damaged."""
    from robustode.bench.records.store import Store

    @cache
    def load(folder: Path) -> list[Record]:
        records, problems = Store(folder).load()
        assert problems == []
        return records

    return load


@pytest.fixture
def ode_backend() -> Iterator[Callable[[str], None]]:
    """``ode_backend(name)`` chooses the ODE backend for the rest of a test."""
    from robustode.models import get_ode_backend, set_ode_backend

    before = get_ode_backend()
    yield set_ode_backend
    set_ode_backend(before)


@pytest.fixture(scope="session")
def digits():
    from robustode.bench.data import load_data

    return load_data("digits")


@pytest.fixture(scope="session")
def few(digits):
    """The digits, with 200 samples to train on, 60 to validate and 40 to test."""
    import dataclasses

    return dataclasses.replace(
        digits,
        train=digits.train.first(200),
        validation=digits.validation.first(60),
        test=digits.test.first(40),
    )


@contextmanager
def _additions_forgotten() -> Iterator[None]:
    """Forget models, threats, datasets and imported model files that a test adds."""
    from robustode.attacks import THREATS
    from robustode.bench.data import DATASETS
    from robustode.bench.plugins.model_file import forget_model_files
    from robustode.models import MODELS

    before = [(registry, set(registry.names())) for registry in (MODELS, THREATS, DATASETS)]
    path = list(sys.path)
    yield
    for registry, names in before:
        for name in set(registry.names()) - names:
            registry.unregister(name)
    forget_model_files()
    assert sys.path == path, "sys.path was changed and not restored"


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget models, threats, datasets and imported model files that a test adds."""
    with _additions_forgotten():
        yield


@pytest.fixture(scope="module")
def registries_of_module() -> Iterator[None]:
    """As `registries`, for what the tests of a file add together."""
    with _additions_forgotten():
        yield


def _needed(name: str, install: str) -> types.ModuleType:
    """A package to compare with; where ROBUSTODE_PARITY is "required", as in tox, it must be there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if os.environ.get("ROBUSTODE_PARITY") == "required":
            raise
        pytest.skip(f"{name} is not installed: {install}")


@pytest.fixture(scope="session")
def torchattacks() -> types.ModuleType:
    """The package torchattacks, as `_needed`."""
    return _needed("torchattacks", "pip install 'robustode[torchattacks]'")


@pytest.fixture(scope="session")
def adv_lib() -> types.ModuleType:
    """The package adv-lib, as `_needed`.

    It imports visdom, which only its plots use and which often cannot be installed.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses distutils
        patch.setitem(sys.modules, "visdom", sys.modules.get("visdom", types.ModuleType("visdom")))
        return _needed("adv_lib.attacks", "pip install --no-deps adv-lib==0.2.8")
