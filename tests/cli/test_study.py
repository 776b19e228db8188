from __future__ import annotations

import json
import warnings

import pytest
import yaml
from studies.tiny import TINY, write_study

from workbench.runs import Store
from workbench.studies.loading import load_study, preset_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jsonschema


@pytest.fixture
def file(tmp_path):
    return write_study(tmp_path)


# --- plan


def test_plan_as_json(cli, whole, file):
    body = cli("study", "plan", file, "--json").json
    assert body["study"] == "tiny"
    stages = {s["name"]: s for s in body["stages"]}
    assert len(stages) == 11
    assert {key for s in body["stages"] for key in s} == {
        "name",
        "kind",
        "key",
        "seed",
        "parents",
        "state",
        "seconds",
        "bytes",
        "memory",
    }
    assert {s["state"] for s in body["stages"]} == {"done"}
    assert stages["finetune-wrapped-s0"]["parents"] == [stages["pretrain-base-s0"]["key"]]
    assert [s["key"] for s in body["stages"]] == [s.key for s in whole.plan.stages]


def test_plan_says_what_is_missing_and_runs_nothing(cli, whole, file, tmp_path):
    body = cli("study", "plan", file, "--seeds", "0-1", "--set", "analyses=[behaviour]", "--json").json
    assert {(s["seed"], s["state"]) for s in body["stages"]} == {(0, "done"), (1, "to do")}
    said = cli("study", "plan", file, "--store", tmp_path / "empty")
    assert said.code == 0
    assert "tiny: 11 stages to do (0 done), about" in said.out
    assert "reverse-irrelevant-wrapped-s0" in said.out
    assert not (tmp_path / "empty").exists()
    assert "tiny: all 11 stages are done." in cli("study", "plan", file).out


def test_plan_shows_damage_and_interruption(cli, copied, file):
    runs = {run.stage: run.path for run in copied.store.runs()}
    (runs["finetune-wrapped-s0"] / "spec.yaml").unlink()
    status = runs["pretrain-base-s0"] / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    states = {s["name"]: s["state"] for s in cli("study", "plan", file, "--json").json["stages"]}
    assert (states["finetune-wrapped-s0"], states["pretrain-base-s0"]) == ("damaged", "failed")


# --- run, show, list


def test_run_of_a_done_study_prints_the_verdicts(cli, copied, file):
    said = cli("study", "run", file, "--no-report")
    assert said.code == 0
    assert "tiny: all 11 stages are done." in said.out
    assert "Verdicts of tiny" in said.out
    assert "points to" in said.out
    assert "look closer: workbench app   (or make app)" in said.out
    assert f"--store {copied.store.root}" not in said.out


def test_show_as_json(cli, whole):
    body = cli("study", "show", "tiny", "--json").json
    assert body["study"] == "tiny"
    assert [(p["name"], p["capability"]) for p in body["pairs"]] == [("wrapped", "count_a"), ("wrapped", "count_b")]
    for pair in body["pairs"]:
        assert set(pair) == {"name", "tuned", "capability", "seeds", "verdict", "reason", "evidence"}
        assert pair["verdict"] in ("untouched", "learned", "masked", "erased", "altered", "inconclusive")
        assert pair["seeds"] == [0]
        for line in pair["evidence"]:
            assert set(line) == {"analysis", "metric", "value", "low", "high", "n", "direction", "bound", "text"}
    assert {line["analysis"] for line in body["pairs"][0]["evidence"]} == {"behaviour", "pruning", "probing", "revival"}


def test_show_says_what_is_done_and_how_to_go_on(cli, file, tmp_path):
    assert "tiny: 11 of 11 stages done\n" in cli("study", "show", "tiny").out
    (tmp_path / "e").mkdir()
    assert f"tiny: 0 of 11 stages done; workbench study run {file}" in cli("study", "show", file, "--store", tmp_path / "e").out


def test_list_as_json(cli, whole):
    rows = {row["name"]: row for row in cli("study", "list", "--json").json}
    assert set(rows) == {*preset_names(), "tiny"}
    assert all(set(row) == {"name", "where", "seeds", "summary"} for row in rows.values())
    assert rows["tiny"]["where"] == str(whole.store.root / "tiny")
    assert rows["tiny"]["seeds"] == [0]
    assert rows["quickstart"]["where"] == "preset"
    assert rows["quickstart"]["summary"]
    assert "quickstart" in cli("study", "list").out


# --- new


def test_new_writes_a_file_that_plans_and_a_schema_that_fits(cli, tmp_path):
    said = cli("study", "new", "mine")
    assert said.code == 0
    path = tmp_path / "here" / "mine.yaml"
    body = yaml.safe_load(path.read_text())
    assert body["study"] == "mine"
    assert load_study(path).model_copy(update={"study": "quickstart"}) == load_study("quickstart")
    first, *_ = path.read_text().splitlines()
    schema = json.loads((tmp_path / "here" / first.split("$schema=./")[1]).read_text())
    jsonschema.validate(body, schema)
    assert "Pretrain a small transformer" in path.read_text()  # the comments and notes of the preset stay
    plan = cli("study", "plan", "mine.yaml", "--json").json
    assert plan["study"] == "mine"
    assert {s["state"] for s in plan["stages"]} == {"to do"}
    assert cli("study", "schema").json == schema


def test_new_from_a_file_of_ones_own(cli, file, tmp_path):
    assert cli("study", "new", "more", "--from", file).code == 0
    assert load_study(tmp_path / "here" / "more.yaml").revive == load_study(file).revive


def test_new_never_overwrites(cli, tmp_path):
    path = tmp_path / "here" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    assert "mine.yaml exists already" in cli("study", "new", "mine").sentence
    assert path.read_text() == "precious"
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.yaml"]


def test_new_refuses_what_it_cannot_rename(cli, tmp_path):
    flow = write_study(tmp_path, json.dumps(yaml.safe_load(TINY)), "flow")
    assert "has no line that begins with 'study:'" in cli("study", "new", "mine", "--from", flow).sentence
    assert not list((tmp_path / "here").iterdir())


# --- bad input

BAD = [
    (["plan", "quikstart"], "no study file or preset 'quikstart'; did you mean 'quickstart'?"),
    (["plan", "{tmp}"], "there is no study file or preset"),
    (["plan", "{file}", "--set", "model.bloks=1"], "unknown key 'bloks' in model; did you mean 'blocks'?"),
    (["plan", "{file}", "--set", "model.blocks"], "has no '='"),
    (["plan", "{file}", "--set", "note=[1"], "is not valid YAML"),
    (["plan", "{file}", "--set", "revive.lr=1"], "is not below finetune.wrapped.lr"),
    (["plan", "{file}", "--set", "finetune.wrapped.correlation.offset=100"], "finetune.wrapped: offset 100"),
    (["plan", "{file}", "--seeds", "a"], "--seeds 'a' is not a list of seeds"),
    (["plan", "{file}", "--seeds", "0,0"], "must be different"),
    (["show", "nope"], "there is no study file or preset 'nope'"),
    (["run", "{file}", "--store", "{file}"], "is a file; give the folder of a store"),
    (["run", "{file}", "--set", "seeds=[]"], "seeds [] must be different"),
    (["new", "../x"], "'../x' cannot name a study"),
    (["new", "a b"], "'a b' cannot name a study"),
    (["new", ""], "'' cannot name a study"),
    (["new", "x", "--from", "nope"], "there is no study file or preset 'nope'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_sentence(cli, file, tmp_path, words, message):
    words = [word.format(tmp=tmp_path, file=file) for word in words]
    said = cli("study", *words)
    if words[0] == "run" and "cost" not in said.out:
        assert (said.code, said.err.count("\n"), message in said.err) == (2, 1, True)  # the cost is printed before
    else:
        assert message in said.sentence


def test_a_damaged_study_file_in_the_store(cli, copied):
    (copied.store.root / "tiny" / "study.yaml").write_text("- 1")
    assert "study is missing; add it" in cli("study", "show", "tiny").sentence
    (copied.store.root / "tiny" / "study.yaml").unlink()
    assert "is missing or damaged; run the study again" in cli("study", "show", "tiny").sentence


def test_a_study_of_another_store(cli, copied, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "none"))
    assert "no study file or preset 'tiny'" in cli("study", "show", "tiny").sentence
    assert cli("study", "show", "tiny", "--store", copied.store.root, "--json").json["study"] == "tiny"
    assert Store.default().runs() == []
