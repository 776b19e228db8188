"""A lab: settings by name, provenance, expectations that hold or not, and results that are kept whole or not at all."""

from __future__ import annotations

import math
import sys

import pytest

import workbench as wb
from workbench.errors import UserError
from workbench.lab import Expectation, LabSettings, expectations, kept, lab, over_seeds, progress
from workbench.registry import labs
from workbench.results import Metric, Result
from workbench.runs import Store
from workbench.workplace import Workplace, working


class DiceSettings(LabSettings):
    sides: int = 6


CALLS: list[int] = []


@lab(version=4, paper="[Some+24]")
def dice(settings: DiceSettings) -> Result:
    """Not the summary."""
    import pandas as pd

    CALLS.append(settings.sides)
    values = [float(seed * settings.sides) for seed in progress(settings.all_seeds, lambda s: f"seed {s}")]
    return Result("", {"table": pd.DataFrame({"value": values})}, (over_seeds("mean", values, 7, "points"),))


def test_settings_are_checked_as_those_of_an_analysis():
    with pytest.raises(UserError, match=r"dice has no setting 'side'; did you mean 'sides'\?"):
        dice(side=3)
    with pytest.raises(UserError, match="dice: seeds is 0: it must be at least 1"):
        dice(seeds=0)


def test_the_result_says_where_it_comes_from():
    result = dice(seed=5, seeds=2)
    assert (result.name, result.settings) == ("dice", {"seed": 5, "seeds": 2, "sides": 6})
    assert result.provenance["seeds"] == [5, 6]
    assert (result.provenance["version"], result.provenance["paper"]) == (4, "[Some+24]")
    assert "torch" in result.provenance["versions"]
    assert result.table["value"].tolist() == [30, 36]


def test_progress_is_told_to_whoever_listens_and_to_nobody_else():
    heard = []
    with working(Workplace(progress=lambda done, of, what: heard.append((done, of, what)))):
        dice(seeds=2)
    dice(seeds=2)
    assert heard == [(0, 2, "seed 0"), (1, 2, "seed 1"), (2, 2, "done")]


def test_intervals_over_seeds():
    two = over_seeds("m", [1.0, 3.0, math.nan], 9)
    assert (two.value, two.low, two.high, two.n, two.seeds) == (2, 1, 3, 9, 2)
    one = over_seeds("m", [1.0], 9)
    assert one.value == 1
    assert math.isnan(one.low)
    assert over_seeds("m", [math.nan], 9).bound == "undefined"


@pytest.mark.parametrize(
    ("low", "high", "held"), [(1, 2, "yes"), (0.5, 1, "open"), (0, 0.5, "no"), (3, 4, "no"), (math.nan, math.nan, "yes")]
)
def test_an_expectation_holds_where_the_whole_interval_does(low, high, held):
    line = Expectation("it stays", Metric("m", 1.5, low, high, 9), low=0.8, high=2)
    assert line.held == held
    assert expectations([line]).loc[0, ["expected_low", "expected_high", "held"]].tolist() == [0.8, 2, held]
    assert Expectation("it is", Metric("m", math.nan, math.nan, math.nan, 9), low=0).held == "open"


def test_a_result_is_kept_and_read_back(tmp_path):
    CALLS.clear()
    store = Store(tmp_path)
    first = kept(dice, {"sides": 8}, store)
    again = kept(dice, {"sides": 8, "seed": 0}, store)
    assert CALLS == [8]
    assert (first.was_there, again.was_there) == (False, True)
    assert again.folder == first.folder == tmp_path / "labs" / f"dice-{dice.key({'sides': 8})}"
    assert again.result.headline == first.result.headline
    html = (first.folder / "figure.html").read_text()
    assert len(html) > 1_000_000  # plotly is inside
    assert '<script src="http' not in html
    assert kept(dice, {"sides": 9}, store).folder != first.folder
    assert store.runs() == []  # no stage of a study


def test_a_damaged_result_is_made_anew(tmp_path):
    CALLS.clear()
    first = kept(dice, {}, Store(tmp_path))
    (first.folder / "table.parquet").write_bytes(b"half")
    assert not kept(dice, {}, Store(tmp_path)).was_there
    assert kept(dice, {}, Store(tmp_path)).was_there
    assert len(CALLS) == 2


def test_the_labs_of_the_workbench_are_found_by_name():
    assert {"hessian_width", "hessian_clusters", "hessian_batch_path"} <= set(labs.names())
    for name, entry in labs.entries().items():
        experiment = getattr(wb.labs, name)
        assert experiment is getattr(sys.modules[entry.module], name)
        assert (experiment.version, experiment.paper) == (entry.version, entry.paper)
        assert entry.minutes > 0
        assert experiment.settings({}).seeds >= 3
    with pytest.raises(AttributeError, match="no attribute 'hessian_widths'"):
        _ = wb.labs.hessian_widths
