"""A results folder as a frame with a line per sample, and curves from frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import robustode
import synthetic
from matplotlib.figure import Figure
from robustode._errors import InvalidArgument, UnknownName
from robustode.bench.records.adversarial_examples import STEPS, AdversarialExamples
from robustode.bench.records.latest import current
from robustode.bench.records.record import Record
from robustode.bench.records.store import Store
from robustode.bench.report.statistics import summarise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = synthetic.records(models=("node", "ch-node"), seeds=(0, 1), samples=30, dataset="fashion-mnist")
    made = synthetic.without_answers(made, ["node"])
    radius = np.linspace(0, 0.6, 30, dtype=np.float32)
    made += [
        Record(
            cell=dataclasses.replace(
                made[1].cell, kind="certificate", threat="lipschitz", training_seed=seed, family="certificate"
            ),
            outcomes={"radius": radius},
            measures={"pixels": 64.0},
        )
        for seed in (0, 1)
    ]
    return synthetic.write(tmp_path_factory.mktemp("results"), made)


@pytest.fixture(scope="module")
def frame(folder):
    return robustode.load_results(folder)


def accuracy_of(frame: pd.DataFrame) -> pd.Series:
    asked = frame[frame["outcome"].notna()].astype({"norm": object})
    keys = ["model", "threat", "norm", "strength"]
    return (
        (asked["outcome"] == "correct").groupby([asked[k] for k in keys], dropna=False, observed=True).mean()
    )


def test_a_frame_per_sample_gives_the_numbers_of_the_summary(folder, frame) -> None:
    table = summarise(current(Store(folder).load()[0])[0])
    accuracies = table[table["statistic"] == "accuracy"]
    found = accuracy_of(frame)
    assert len(found) == len(accuracies)
    assert "worst-case" in set(accuracies["threat"])
    for row in accuracies.itertuples():
        ours = found.loc[row.model, row.threat].reset_index()
        ours = ours[
            (ours["strength"] == row.strength)
            & (ours["norm"].fillna("") == ("" if pd.isna(row.norm) else row.norm))
        ]
        ours = ours["outcome"]
        assert ours.item() == pytest.approx(row.value), row
    silent = table[(table["statistic"] == "no_answer") & (table["threat"] == "pgd-l2")].iloc[0]
    mine = frame.query("model == 'node' and threat == 'pgd-l2'")
    mine = mine[mine["strength"] == silent["strength"]]
    assert (mine["outcome"] == "no answer").mean() == pytest.approx(silent["value"])


def test_each_line_is_a_sample_of_a_draw_of_a_seed(frame) -> None:
    noise = frame.query("model == 'node' and threat == 'gaussian' and strength == 0.2")
    assert len(noise) == 2 * 3 * 30
    assert not noise.duplicated(["seed", "draw", "sample"]).any()
    assert set(noise["draw"]) == {0, 1, 2}
    wrong = frame["outcome"] == "misclassified"
    attacked = ~frame["threat"].isin(["worst-case", "lipschitz"])
    assert (frame.loc[attacked, "misclassified_as"].notna() == wrong[attacked]).all()


def test_a_bound_is_the_certified_radius_in_the_norm_of_its_line(frame) -> None:
    ours = frame.query("model == 'node' and seed == 0 and sample == 29")
    assert ours.query("norm == 'l2'")["bound"].to_numpy() == pytest.approx(0.6)
    assert ours.query("norm == 'linf'")["bound"].to_numpy() == pytest.approx(0.6 / 8)
    assert ours.query("threat == 'gaussian'")["bound"].isna().all()
    assert frame.query("model == 'ch-node'")["bound"].isna().all()


def test_a_distance_is_the_norm_of_the_stored_perturbation(tmp_path, digits) -> None:
    """The digits' samples have other numbers in their source than in the test set."""
    made = synthetic.records(
        models=("node",), samples=40, threats=("pgd-l2",), index_sha256=digits.index_sha256
    )
    attack = next(i for i, r in enumerate(made) if r.cell.threat == "pgd-l2" and r.cell.strength == 0.5)
    broken = np.flatnonzero(~made[attack].outcomes["correct"][0])[:3]
    steps = np.zeros((3, 1, 8, 8), np.int32)
    steps[:, 0, 0, 0], steps[:, 0, 1, 1] = [3000, 6000, 9000], [-4000, -8000, -12000]
    examples = AdversarialExamples(
        index=digits.test.indices[broken], label=np.zeros(3, np.int64), steps=steps
    )
    facts = Store(tmp_path).put_examples(made[attack].cell, examples)
    made[attack] = dataclasses.replace(made[attack], card={"adversarial": facts})
    frame = robustode.load_results(synthetic.write(tmp_path, made)).set_index("sample")
    for threat in ("pgd-l2", "worst-case"):
        lines = frame[(frame["threat"] == threat) & (frame["strength"] == 0.5)]
        assert lines.loc[broken, "distance"].to_numpy() == pytest.approx(
            [5000 / STEPS, 10000 / STEPS, 15000 / STEPS]
        )
        assert lines["distance"].notna().sum() == 3
    assert frame.query("strength != 0.5")["distance"].isna().all()


def test_models_and_threats_are_chosen_by_name(folder, frame) -> None:
    one = robustode.load_results(folder, models="node", threats=["clean", "l2"])
    assert set(one["model"]) == {"node"}
    assert set(one["threat"]) == {"clean", "fgsm-l2", "pgd-l2", "worst-case", "lipschitz"}
    ours = frame.query("model == 'node' and (threat == 'clean' or norm == 'l2')").reset_index(drop=True)
    pd.testing.assert_frame_equal(one.astype(object), ours.astype(object))
    with pytest.raises(UnknownName, match="unknown model 'nod'"):
        robustode.load_results(folder, models=["nod"])
    with pytest.raises(UnknownName, match="'pgd'"):
        robustode.load_results(folder, threats="pgd")


def test_failed_cells_have_no_lines_and_are_told(tmp_path) -> None:
    made = synthetic.records(
        models=("node",), samples=10, threats=("pgd-l2",), failures={("node", "pgd-l2", 0.5): "NaN"}
    )
    with pytest.warns(UserWarning, match="1 cells failed"):
        frame = robustode.load_results(synthetic.write(tmp_path, made))
    assert frame.query("strength == 0.5").empty
    assert frame.attrs["failures"] == ["node seed 0 · pgd-l2 0.5: NaN"]


def test_a_folder_without_records_is_one_line(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="no records in"):
        robustode.load_results(tmp_path / "nothing")


def lines_of(figure: Figure) -> dict[str, list[np.ndarray]]:
    shown = [ax for ax in figure.axes if ax.get_visible()]
    return {ax.get_title(loc="left"): [line.get_xydata() for line in ax.lines] for ax in shown}


def test_a_frame_of_samples_and_the_summary_draw_the_same_curves(folder, frame) -> None:
    table = summarise(current(Store(folder).load()[0])[0])
    ours, theirs = lines_of(robustode.plot(frame)), lines_of(robustode.plot(table))
    assert list(ours) == list(theirs)
    assert "PGD ℓ₂" in ours
    for title, lines in ours.items():
        assert len(lines) == len(theirs[title])
        for one, other in zip(lines, theirs[title], strict=True):
            np.testing.assert_allclose(one, other)


def test_what_evaluate_returns_is_drawn(folder) -> None:
    table = summarise(current(Store(folder).load()[0])[0])
    one = table[(table["model"] == "node") & table["threat"].isin(["clean", "pgd-linf"])]
    one = one[one["strength"].isin([0.0, 0.1]) & (one["statistic"] != "throughput")]
    figure = robustode.plot(one, width=3.4)
    assert figure.get_figwidth() == 3.4
    (lines,) = lines_of(figure).values()
    assert lines[0][:, 0].tolist() == [0.0, 0.1]
    assert figure._repr_png_().startswith(b"\x89PNG")  # a notebook shows it without pyplot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="bound"), "no column bound"),
        (lambda f: f[f["threat"] == "clean"], "no accuracy under a threat"),
        (lambda f: pd.concat([f.head(3), f.head(3).assign(dataset="mnist")]), "several datasets"),
        (lambda f: list(f), "takes a pandas.DataFrame, not list"),
    ],
)
def test_a_frame_that_cannot_be_drawn_is_one_line(frame, change, message) -> None:
    with pytest.raises(InvalidArgument, match=message):
        robustode.plot(change(frame))
