from __future__ import annotations

import json

import pandas as pd
import pytest

from workbench.cli.common import human_bytes, human_seconds
from workbench.errors import UserError
from workbench.registry import analyses


def test_the_list(cli):
    rows = cli("analyze", "--list", "--json").json
    assert [row["name"] for row in rows] == list(analyses.names())
    assert all(set(row) == {"name", "summary"} for row in rows)
    assert all(row["summary"] for row in rows)
    assert {"behaviour", "pruning", "probing", "revival"} <= {row["name"] for row in rows}
    assert "behaviour" in cli("analyze").out


def test_a_target_without_an_analysis_says_what_is_missing_before_the_list(cli):
    said = cli("analyze", "tiny:wrapped")
    assert said.code == 2
    first, *rest = said.out.splitlines()
    assert first == "--with is missing: say what to run on tiny:wrapped, such as --with pruning; these there are"
    assert any(line.startswith("behaviour") for line in rest)
    assert cli("analyze", "tiny:wrapped", "--list").out.splitlines() == rest


@pytest.mark.parametrize("name", ["behaviour", "revival"])  # the ratio of the second was not measured: null, not NaN
def test_one_pair_as_json(cli, copied, name):
    body = cli("analyze", "tiny:wrapped", "--with", name, "--json").json
    assert {"name", "headline", "tables"} <= set(body)
    assert (body["name"], body["pair"]) == (name, "wrapped")
    for metric in body["headline"]:
        assert {"metric", "value", "low", "high", "n", "unit"} <= set(metric)
    stored = copied.result("wrapped", name, seed=0)
    assert stored is not None
    assert set(body["tables"]) == set(stored.tables)
    for table, path in body["tables"].items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), stored.tables[table])
    assert {m["metric"] for m in body["headline"]} == {m.metric for m in stored.headline}
    assert any(m["value"] is None for m in body["headline"]) == (name == "revival")


def test_what_it_will_take_is_said_before_it_starts(cli, copied, monkeypatch):
    from workbench.studies.handle import Study

    asked = ("analyze", "tiny:wrapped", "--with", "pruning", "--set", "n=33")
    ran = []
    monkeypatch.setattr(Study, "analyze", lambda *_, **__: ran.append(True) or exit_with("as far as this"))
    said = cli(*asked)
    (stage,) = copied.stages_of("wrapped", "pruning", {"n": 33})
    first, second = said.err.splitlines()
    assert first == (
        f"pruning on tiny:wrapped: 1 seed, about {human_seconds(stage.seconds)} on one core, "
        f"up to {human_bytes(stage.memory)} of memory"
    )
    assert second == "error: as far as this"
    assert said.out == ""
    assert ran


def exit_with(sentence):
    raise UserError(sentence)


def test_the_estimate_is_no_part_of_the_json_and_not_said_of_what_is_done(cli, copied):
    asked = ("analyze", "tiny:wrapped", "--with", "pruning", "--set", "n=33", "--json")
    first, again = cli(*asked), cli(*asked)
    assert first.err.startswith("pruning on tiny:wrapped: 1 seed, about ")
    assert first.err.count("\n") == 1
    assert again.err == ""
    assert first.out == again.out
    assert json.loads(first.out)["name"] == "pruning"


def test_tables_of_several_seeds_are_told_apart(tmp_path):
    from workbench.cli.analyze import _tables

    for seed in (0, 1):
        run = tmp_path / f"pruning-my-pair-s{seed}-0123456789"
        run.mkdir()
        (run / "table.parquet").touch()
    runs = sorted(tmp_path.iterdir())
    assert _tables(runs) == {f"table@s{seed}": str(run / "table.parquet") for seed, run in enumerate(runs)}
    assert _tables(runs[1:]) == {"table": str(runs[1] / "table.parquet")}


def test_along_the_checkpoints_of_a_training(cli, copied):
    body = cli("analyze", "tiny:wrapped", "--with", "behaviour", "--along", "finetune", "--json").json
    assert body["name"] == "along"
    table = pd.read_parquet(body["tables"]["table"])
    steps = sorted(table["step"].unique())
    assert steps[0] == 0
    assert len(steps) > 2
    last = {m["metric"]: m["value"] for m in cli("analyze", "tiny:wrapped", "--with", "behaviour", "--json").json["headline"]}
    end = table[(table["step"] == steps[-1]) & (table["metric"] == "tuned_pt")]["value"]
    assert end.tolist() == pytest.approx([last["tuned_pt"]])


@pytest.mark.parametrize("training", ["pretraining", "revived@1e-9"])
def test_a_training_that_is_not_there_is_named(cli, copied, training):
    said = cli("analyze", "tiny:wrapped", "--with", "behaviour", "--along", training)
    assert said.code == 2
    assert repr(training) in said.err
    assert "Traceback" not in said.err


def test_a_whole_study_is_a_list_of_pairs(cli, copied):
    (only,) = cli("analyze", "tiny", "--with", "behaviour", "--json").json
    assert only["pair"] == "wrapped"


def test_a_changed_setting_is_a_run_of_its_own(cli, copied):
    before = {run.name for run in copied.store.runs()}
    body = cli("analyze", "tiny:wrapped", "--with", "behaviour", "--set", "n=32", "--json").json
    assert {m["n"] for m in body["headline"] if m["metric"] == "base_pt"} == {32}
    (added,) = {run.name for run in copied.store.runs()} - before
    assert all(added in path for path in body["tables"].values())
    first = copied.result("wrapped", "behaviour")
    assert first is not None
    assert first.metric("base_pt").n == 16
    cli("analyze", "tiny:wrapped", "--with", "behaviour", "--set", "n=32")
    assert len(copied.store.runs()) == len(before) + 1


def test_the_printed_form_names_limits_and_tables(cli, copied):
    said = cli("analyze", "tiny:wrapped", "--with", "behaviour", "--seed", "0")
    assert said.code == 0
    assert "behaviour of wrapped (seeds 0)" in said.out
    assert "base_pt" in said.out
    assert "limit: Behaviour alone does not tell" in said.out
    evidence = copied.result("wrapped", "behaviour", seed=0).evidence
    assert all(line.text.split(";")[0] in " ".join(said.out.split()) for line in evidence)
    assert str(copied.store.root / "tiny") in said.out.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--with", "behaviour"], "name what to analyse: a study of the store, or study:pair"),
        (["tinny", "--with", "behaviour"], "has no study 'tinny'; did you mean 'tiny'?"),
        (["quickstart", "--with", "behaviour"], "has no study 'quickstart'; `workbench study run quickstart` makes it"),
        (["tiny:wraped", "--with", "behaviour"], "study 'tiny' has no pair 'wraped'; did you mean 'wrapped'?"),
        (["tiny", "--with", "behavior"], "there is no analysis 'behavior'; did you mean 'behaviour'?"),
        (["tiny", "--with", "behaviour", "--set", "m=3"], "behaviour has no setting 'm'"),
        (["tiny", "--with", "behaviour", "--set", "n=2"], "behaviour: n is 2"),
        (["tiny", "--with", "behaviour", "--set", "n"], "has no '='"),
        (["tiny", "--with", "behaviour", "--seed", "9"], "study 'tiny' has no seed 9; it has 0"),
    ],
)
def test_bad_input_is_one_sentence(cli, copied, words, message):
    assert message in cli("analyze", *words).sentence
    assert len(copied.store.runs()) == 11
