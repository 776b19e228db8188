from __future__ import annotations

import pytest
import yaml

ROW = {"key", "name", "study", "stage", "kind", "seed", "state", "reason", "step", "steps", "seconds", "parents", "path"}


def keys(cli) -> dict[str, str]:
    return {row["stage"]: row["key"] for row in cli("runs", "list", "--json").json}


def test_list_as_json(cli, whole):
    rows = cli("runs", "list", "--json").json
    assert len(rows) == 11
    assert all(set(row) == ROW for row in rows)
    assert {row["state"] for row in rows} == {"done"}
    base = next(row for row in rows if row["stage"] == "pretrain-base-s0")
    assert (base["kind"], base["seed"], base["step"], base["steps"], base["parents"]) == ("pretrain", 0, 20, 20, [])
    assert base["name"] == f"tiny/pretrain-base-s0-{base['key']}"
    assert base["path"] == str(whole.store.root / base["name"])
    assert cli("runs", "list", "--study", "tiny", "--json").json == rows
    assert cli("runs", "list", "--study", "other", "--json").json == []


def test_list_shows_damage_beside_what_is_whole(cli, copied):
    path = next(run.path for run in copied.store.runs() if run.stage == "pretrain-base-s0")
    (path / "status.json").write_text("{")
    rows = {row["stage"]: row for row in cli("runs", "list", "--json").json}
    assert len(rows) == 11
    assert rows["pretrain-base-s0"]["state"] == "damaged"
    assert "status.json cannot be read" in rows["pretrain-base-s0"]["reason"]
    assert sum(row["state"] == "done" for row in rows.values()) == 10
    out = cli("runs", "list").out
    assert "11 runs in" in out
    assert "damaged" in out
    assert "20/20" in out


def test_a_store_without_runs_says_how_to_fill_it(cli, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    said = "there are no runs yet in {}; make some with: workbench study run quickstart"
    assert cli("runs", "list", "--store", tmp_path / "empty").out.strip() == said.format(tmp_path / "empty")
    assert cli("runs", "list", "--store", tmp_path / "empty", "--json").json == []
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "none"))  # the default store may not be there yet
    assert cli("runs", "list").out.strip() == said.format(tmp_path / "none")
    assert cli("study", "show", "quickstart").out.strip() == said.format(tmp_path / "none")
    assert len(cli("study", "show", "quickstart", "--json").json["pairs"])
    assert "there is no study file or preset 'quickstrat'" in cli("study", "show", "quickstrat").sentence
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words", [["runs", "list"], ["runs", "show", "x"], ["study", "show", "quickstart"], ["study", "list"], ["report", "tiny"]]
)
def test_a_store_that_was_asked_for_must_be_there(cli, tmp_path, words):
    said = cli(*words, "--store", tmp_path / "none").sentence
    assert (
        said
        == f"there is no store {tmp_path / 'none'}; `workbench study run STUDY --store {tmp_path / 'none'}` makes one there."
    )


def test_show(cli, whole):
    key = keys(cli)["finetune-wrapped-s0"]
    body = cli("runs", "show", key, "--json").json
    assert set(body) == ROW | {"bytes", "checkpoints", "spec", "provenance"}
    assert body["checkpoints"] == [0, 5, 7, 8]
    assert body["spec"]["protocol"]["settings"]["correlation"] == {"with": "count_a", "offset": 1, "share": 1.0}
    assert body["provenance"]["versions"]["torch"]
    assert body["bytes"] > 1000
    assert yaml.safe_load(cli("runs", "show", f"finetune-wrapped-s0-{key}").out) == body
    for name in keys(cli).values():
        assert cli("runs", "show", name, "--json").json["key"] == name


def test_verify_of_a_good_store(cli, copied):
    said = cli("runs", "verify")
    assert (said.code, said.out) == (0, "11 runs read, 0 with problems; all is well\n")
    report = cli("runs", "verify", "--json").json
    assert len(report) == 11
    assert all(entry["problems"] == [] for entry in report)


def test_verify_finds_a_truncated_file_and_changed_weights(cli, copied):
    run = next(run for run in copied.store.runs() if run.stage == "pretrain-base-s0")
    first, last = run.checkpoint(0).path / "model.safetensors", run.checkpoint(20).path / "model.safetensors"
    first.write_bytes(first.read_bytes()[:-1])
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    said = cli("runs", "verify")
    assert said.code == 2
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{run.name}: {run.path.name}: checkpoints/step-0/model.safetensors has 20,479 bytes")
    assert lines[1].startswith(f"{run.name}: model.safetensors: truncated")
    assert lines[2].startswith(f"{run.name}: step-20: its weights hash to")
    assert lines[3] == "11 runs read, 1 with problems"
    assert "workbench runs remove RUN" in lines[4]
    said = cli("runs", "verify", run.key, "--json")
    assert said.code == 2
    (entry,) = said.json
    assert entry["run"] == run.name
    assert [set(problem) for problem in entry["problems"]] == [{"path", "text"}] * 3
    good = next(r for r in copied.store.runs() if r.stage == "pretrain-never_had_it-s0")
    assert cli("runs", "verify", good.key).code == 0


def test_remove_refuses_parents_and_takes_children_along_when_told(cli, copied):
    named = keys(cli)
    base = named["pretrain-base-s0"]
    assert f"run {base} is a parent of tiny/" in cli("runs", "remove", base).sentence
    assert len(copied.store.runs()) == 11
    dry = cli("runs", "remove", base, "--with-children", "--dry-run")
    assert dry.code == 0
    assert dry.out.count("would remove tiny/") == 8
    assert "would be freed" in dry.out
    assert len(copied.store.runs()) == 11
    said = cli("runs", "remove", base, "--with-children")
    assert said.out.replace("removed", "would remove").splitlines()[:-1] == dry.out.splitlines()[:-1]
    kept = {"pretrain-never_had_it-s0", "reverse-never_had_it-s0", "reverse-scratch-s0"}
    assert {run.stage for run in copied.store.runs()} == kept
    assert cli("runs", "verify").code == 0


def test_remove_of_a_leaf(cli, copied):
    key = keys(cli)["behaviour-wrapped-s0"]
    assert f"removed tiny/behaviour-wrapped-s0-{key}" in cli("runs", "remove", key).out
    assert "behaviour-wrapped-s0" not in keys(cli)
    copied.run(engine="inline", progress=False)
    assert keys(cli)["behaviour-wrapped-s0"] == key


@pytest.mark.parametrize("verb", ["show", "verify", "remove"])
@pytest.mark.parametrize("name", ["nope", "", "../..", "pretrain-base-s1"])
def test_a_run_that_is_not_there(cli, verb, name):
    assert f"there is no run {name!r}" in cli("runs", verb, name).sentence
