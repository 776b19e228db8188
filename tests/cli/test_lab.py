from __future__ import annotations

import json

import calling
import pandas as pd
import pytest

from workbench.registry import labs

FEW = ("--set", "sources=[blobs]", "--set", "classes=[2, 3]", "--set", "width=4", "--set", "rows=40", "--set", "seeds=2")


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return lambda *words: calling.call(monkeypatch, capsys, *words)


def test_the_list(cli):
    rows = json.loads(cli("lab", "--list", "--json").out)
    assert [row["name"] for row in rows] == list(labs.names())
    assert all(row["summary"] for row in rows)
    assert "hessian_width" in cli("lab").out


def test_a_lab_prints_its_numbers_and_is_read_back(cli, tmp_path):
    first = cli("lab", "hessian_clusters", *FEW)
    assert first.code == 0
    assert "follows_blobs" in first.out
    assert "at least 0.8" in first.out
    assert "limit: A number of outliers depends on the rule" in first.out
    assert "hessian_clusters: 8 of 8, done" in first.err
    (folder,) = (tmp_path / "runs" / "labs").iterdir()
    assert {"result.json", "figure.html", "table.parquet"} <= {p.name for p in folder.iterdir()}
    again = cli("lab", "hessian_clusters", *FEW, "--seed", "0")
    assert again.out.splitlines()[0] == f"read back from {folder}: these settings have run before"
    assert "8 of 8" not in again.err


def test_json_is_the_shape_of_all_results(cli):
    said = cli("lab", "hessian_clusters", *FEW, "--json")
    body = json.loads(said.out, parse_constant=pytest.fail)
    assert said.err == ""
    assert body["name"] == "hessian_clusters"
    assert {"metric", "value", "low", "high", "n", "unit"} <= set(body["headline"][0])
    assert {"table", "runs", "expectations"} <= set(body["tables"])
    assert len(pd.read_parquet(body["tables"]["runs"])) == 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("hessian_widht",), "there is no lab 'hessian_widht'; did you mean 'hessian_width'?"),
        (("hessian_width", "--set", "rowz=3"), "hessian_width has no setting 'rowz'; did you mean 'rows'?"),
        (("hessian_width", "--set", "rows=3"), "hessian_width: rows is 3: it must be at least 32."),
        (("hessian_clusters", "--set", "classes=[1]"), "hessian_clusters: classes: 1 classes are not possible; give numbers from 2 to 20."),
        (("hessian_width", "--seed", "1", "--set", "seed=2"), "--seed 1 and --set seed=2 both say the first seed; give one of them."),
        (("hessian_width", "--all"), "--all runs every lab, and 'hessian_width' is one; give the one or the other."),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(cli, words, sentence):
    said = cli("lab", *words)
    assert (said.code, said.out, said.err) == (2, "", f"error: {sentence}\n")
