"""Kernels are compiled wherever the package lies: kept on disk where that can be, else in memory."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numba
import pytest
from robustode.models.ode.kernels.kernel_cache import njit_cached


@pytest.fixture
def plus_one(tmp_path, monkeypatch) -> Any:
    """A function of an installation that cannot be written, of a user whose home cannot be either."""
    package, temporary = tmp_path / "package", tmp_path / "temporary"
    package.mkdir()
    temporary.mkdir()
    (package / "__pycache__").write_text("no folder")
    (package / "loops.py").write_text("def plus_one(x):\n    return x + 1\n")
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "no-folder"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("loops", package / "loops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(module.plus_one)
    return module.plus_one


def test_kernels_are_kept_in_a_temporary_folder_where_no_other_can_be_written(plus_one, tmp_path):
    kernel = njit_cached(plus_one, nogil=True)
    assert kernel(1) == 2
    folder = next((tmp_path / "temporary").iterdir())
    assert Path(kernel.stats.cache_path).is_relative_to(folder)
    assert list(folder.rglob("*.nbi"))
    assert folder.stat().st_mode & 0o077 == 0
    assert numba.config.CACHE_DIR == ""
    again = njit_cached(plus_one, nogil=True)
    assert (again(1), sum(again.stats.cache_hits.values())) == (2, 1)


@pytest.mark.parametrize("why", ["others may write to it", "a link", "none"])
def test_kernels_are_compiled_without_a_folder_that_is_the_users_alone(plus_one, tmp_path, monkeypatch, why):
    folder = tmp_path / "temporary" / f"robustode-numba-{os.getuid()}"
    if why == "none":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no-folder"))
    elif why == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    kernel = njit_cached(plus_one)
    assert kernel(1) == 2
    assert kernel.stats.cache_path is None
    assert not list(tmp_path.rglob("*.nbi"))


def test_no_folder_is_made_where_the_user_works_without_a_home(plus_one, tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # this user is in no list of users
    monkeypatch.chdir(tmp_path)
    assert njit_cached(plus_one)(1) == 2
    assert not (tmp_path / "~").exists()


def test_a_folder_that_the_user_names_comes_first(plus_one, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    kernel = njit_cached(plus_one)
    assert kernel(1) == 2
    assert list((tmp_path / "named").rglob("*.nbi"))
