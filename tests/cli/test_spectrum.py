"""`workbench spectrum` on one training run and on a pair: numbers, files, and what it refuses."""

from __future__ import annotations

import pandas as pd
import pytest

FEW = ("--set", "n=16", "--set", "top=2", "--set", "bottom=1", "--set", "steps=4", "--set", "probes=2")


@pytest.fixture
def base(copied):
    (run,) = [run for stage, run in copied.runs() if stage.name.startswith("pretrain-base")]
    return run


def test_a_run_is_measured_once_and_kept_beside_it(cli, copied, base):
    said = cli("spectrum", base.name, *FEW)
    assert said.code == 0
    assert "lambda max" in said.out or "lambda_max" in said.out
    assert "product" in said.err  # a progress bar
    again = cli("spectrum", base.key, *FEW, "--json")
    assert again.err == ""
    kept = copied.store.get(again.json["run"])
    assert kept.done
    assert kept.parents == (base.key,)
    assert not (kept.path / "scratch").exists()
    ends = pd.read_parquet(again.json["tables"]["eigenvalues"])
    assert set(ends["end"]) == {"top", "bottom"}
    assert {m["metric"] for m in again.json["headline"]} >= {"lambda_max_model_pt", "trace_model_pt", "asymmetry_model_pt"}


def test_a_checkpoint_on_the_way_is_another_one(cli, base):
    first = base.checkpoints[0].step
    at = [cli("spectrum", base.name, "--step", step, *FEW, "--json").json["run"] for step in (first, base.checkpoint().step)]
    assert len(set(at)) == (1 if first == base.checkpoint().step else 2)
    assert "has no checkpoint of step 987" in cli("spectrum", base.name, "--step", 987, *FEW).sentence


def test_a_pair_is_analysed(cli, copied):
    body = cli("spectrum", "tiny:wrapped", *FEW, "--json").json
    assert body["name"] == "spectrum"
    assert {m["metric"] for m in body["headline"]} >= {"lambda_max_base_pt", "lambda_max_tuned_ft"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing-here",), "there is no run 'nothing-here'"),
        (("tiny:wrapped", "--step", "3"), "--step and --capability are of one run"),
        (("tiny:nobody",), "has no pair 'nobody'"),
        (("tinyy:wrapped",), "has no study 'tinyy'; did you mean 'tiny'"),
    ],
)
def test_what_is_not_there_is_refused(cli, copied, words, said):
    assert said in cli("spectrum", *words).sentence


def test_settings_and_capabilities_that_do_not_fit_a_run(cli, base):
    assert "has no setting 'points'" in cli("spectrum", base.name, "--set", "points=3").sentence
    assert "spectrum has no setting 'tops'" in cli("spectrum", base.name, "--set", "tops=3").sentence
    assert "has no capability 'count_z'" in cli("spectrum", base.name, "--capability", "count_z").sentence
