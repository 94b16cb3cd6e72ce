"""The report of many models, against reading and checking what it is made of."""

from __future__ import annotations

import pytest
import synthetic
from robustode.bench.records.store import Store
from robustode.bench.report.report import write_report


@pytest.mark.benchmark(group="report")
def test_report(against, scale, tmp_path, monkeypatch):
    names = [f"model-{i:03d}" for i in range(scale.models)]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)  # thousands of files, and none has to survive a crash
        made = synthetic.records(models=names, samples=200) + synthetic.audits(names)
        synthetic.write(tmp_path, made)
    report = against(
        lambda: write_report(tmp_path),
        lambda: Store(tmp_path).load(),
        what=f"{scale.models} models, {len(list(tmp_path.rglob('records/*/*')))} records",
        name="Store.load of the same records",
        goal="seconds < 10",
    )
    assert report.page.exists()
    assert len(report.leaderboard) == scale.models
    assert report.page.read_text().count("what determinism asks: One of the samples") == scale.models
