"""Results survive the disk whole; what cannot be read is refused with a sentence."""

import json
import math
import pickle
from functools import partial

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from workbench.errors import UserError
from workbench.results import Evidence, LazyTables, Metric, Result

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def result():
    return Result(
        name="revival",
        tables={
            "table": pd.DataFrame({"arm": ["revived", None], "value": [0.5, NAN], "n": [100, 200]}),
            "curves": pd.DataFrame({"step": [0, 5], "ok": [True, False]}),
        },
        headline=(
            Metric("ratio", 0.25, 0.1, INF, 500, "x", "upper", "geometric", 2, (0.1, 0.2, NAN)),
            Metric("accuracy", NAN, 0.0, 1.0, 500),
        ),
        evidence=(Evidence("revival", "ratio", 0.25, 0.1, 0.5, 500, "masked", "it came back — quickly", "count_a", "upper"),),
        limits=("one task",),
        settings={"top": 3, "scores": ["a"]},
        provenance={"seed": 0},
    )


def test_lazy_tables_are_made_once_when_they_are_looked_at():
    asked: list[str] = []

    def made(name: str) -> pd.DataFrame:
        asked.append(name)
        return pd.DataFrame({"value": [0.5]})

    tables = LazyTables({name: partial(made, name) for name in ("table", "curves")})
    assert (list(tables), len(tables), "table" in tables, "other" in tables, asked) == (["table", "curves"], 2, True, False, [])
    assert tables["table"] is tables["table"]
    assert asked == ["table"]
    copied = pickle.loads(pickle.dumps(tables))  # for a cache: what it was made of may be gone by then
    assert {name: list(table["value"]) for name, table in copied.items()} == {"table": [0.5], "curves": [0.5]}
    assert asked == ["table", "curves"]


def same(a, b):
    """Equality in which NaN equals NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def fields(line):
    return tuple(vars(line).values())


def test_a_round_trip_keeps_everything_also_nan_and_infinity(result, tmp_path):
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded.name == "revival"
    assert all(map(same, map(fields, loaded.headline), map(fields, result.headline)))
    assert len(loaded.headline) == 2
    assert loaded.evidence == result.evidence
    assert (loaded.limits, loaded.settings, loaded.provenance) == (result.limits, result.settings, result.provenance)
    assert loaded.tables.keys() == result.tables.keys()
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(loaded.tables[name], table)


def test_the_main_table_and_headline_numbers_are_found_by_name(result):
    assert list(result.table.columns) == ["arm", "value", "n"]
    assert result.metric("ratio").bound == "upper"
    with pytest.raises(KeyError, match=r"revival has no headline number 'ration'; it has \['ratio', 'accuracy'\]"):
        result.metric("ration")


def _json(change):
    def damage(folder):
        body = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(change(body)))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "result.json").unlink(),
        lambda f: (f / "result.json").write_text("{"),
        lambda f: (f / "result.json").write_bytes(b"\xff\xfe"),
        lambda f: (f / "curves.parquet").unlink(),
        lambda f: (f / "curves.parquet").write_bytes(b"PAR1"),
        lambda f: (f / "curves.parquet").write_bytes((f / "curves.parquet").read_bytes()[:-20]),
        _json(lambda body: []),
        _json(lambda body: None),
        _json(lambda body: {k: v for k, v in body.items() if k != "headline"}),
        _json(lambda body: {**body, "headline": [{"metric": "x"}]}),
        _json(lambda body: {**body, "evidence": [{"surprise": 1}]}),
        _json(lambda body: {**body, "headline": 3}),
        _json(lambda body: {**body, "limits": None}),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(result, tmp_path, damage):
    result.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} holds no readable result .+; run the analysis again"):
        Result.load(tmp_path)


def test_another_schema_is_named(result, tmp_path):
    result.save(tmp_path)
    _json(lambda body: {**body, "schema": 99})(tmp_path)
    with pytest.raises(UserError, match=r"result\.json has schema 99, this version reads 1; run the analysis again"):
        Result.load(tmp_path)


def test_the_printed_form_says_where_tables_lie_and_leaves_draws_out(result, tmp_path):
    printed = result.to_json(tmp_path)
    assert printed["tables"] == {"table": f"{tmp_path}/table.parquet", "curves": f"{tmp_path}/curves.parquet"}
    assert result.to_json()["tables"] == {"table": "2 rows", "curves": "2 rows"}
    assert printed["name"] == "revival"
    assert {"metric", "value", "low", "high", "n", "unit"} <= printed["headline"][0].keys()
    assert "draws" not in printed["headline"][0]


@pytest.mark.parametrize("renderer", ["plotly_mimetype", ""])
def test_a_notebook_shows_the_headline_and_a_figure_or_plain_text(monkeypatch, renderer):
    monkeypatch.setattr("workbench.figures.figure", lambda result: go.Figure(go.Scatter(y=[1, 2], name=result.name)))
    monkeypatch.setattr(pio.renderers, "default", renderer)
    shown = Result("lookup", {}, (Metric("gap", 0.25, 0.2, 0.3, 100),))._repr_mimebundle_()
    assert "0.25" in shown["text/html"]
    if renderer:
        assert shown["application/vnd.plotly.v1+json"]["data"][0]["name"] == "lookup"
    else:
        assert "gap" in shown["text/plain"]
