"""`workbench reproduce`: what it lists, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.paper.fake_grid import fake_grid
from workbench.paper.catalogue import reproductions
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study

NEW = "--no-run"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Some of the pairs of the preset, invented: all of what the claims say about the small rate, else accuracies."""
    root = tmp_path_factory.mktemp("counting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        medium = [f"core,from={start},lr=0.0003,share={share}" for start in ("p99", "p5") for share in (0.0, 1.0)]
        small = [f"core,from=p99,lr=0.0001,share={share}" for share in (0.0, 0.8, 1.0)]
        fake_grid(
            root,
            load_study("grid_counting"),
            done=lambda pair, analysis: pair.name in small or (pair.name in medium and analysis == "behaviour"),
        )
    return root


@pytest.fixture
def never_run(monkeypatch):
    """Training must not be started."""
    monkeypatch.setattr(Study, "run", lambda *words, **more: pytest.fail("a study was run"))


def test_the_list(cli):
    rows = cli("reproduce", "--list", "--json").json
    assert all(set(row) == {"name", "summary"} for row in rows)
    assert [row["name"] for row in rows] == ["claims", "claims-indexing", *reproductions()]
    assert all(row["summary"] for row in rows)
    printed = cli("reproduce").out  # without a name it is the list, too
    assert printed == cli("reproduce", "--list").out
    assert "Probes after mixing in pretraining data" in printed
    assert "not run" in printed


@pytest.mark.slow
def test_the_list_says_what_is_done(cli, store):
    rows = [line for line in cli("reproduce", "--list", "--store", store).out.splitlines() if "grid_counting" in line]
    done, total = Study.open(Store(store), "grid_counting").progress()
    assert 0 < done < total
    assert all(f"{done} of {total}" in line for line in rows)
    assert "grid_counting_paper" in cli("reproduce", "--list", "--scale", "paper", "--store", store).out


def test_other_seeds_are_asked_for_by_name(cli, store, never_run):
    said = cli("reproduce", "fig5", NEW, "--seeds", "7", "--store", store).sentence
    assert "nothing that it shows is done" in said


def test_a_store_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").touch()
    said = cli("reproduce", "fig5", NEW, "--store", tmp_path / "file").sentence
    assert "is a file; give the folder of a store" in said


def test_a_figure_as_json_has_its_tables_on_disk(cli, store, never_run):
    body = cli("reproduce", "fig5", NEW, "--store", store, "--json").json
    assert {"name", "headline", "tables"} <= set(body)
    assert body["name"] == "fig5"
    for metric in body["headline"]:
        assert {"metric", "value", "low", "high", "n", "unit"} <= set(metric)
    assert set(body["tables"]) == {"table", "levels", "paper"}
    tables = {name: pd.read_parquet(path) for name, path in body["tables"].items()}
    assert list(tables["table"]["column"].unique()) == ["pretraining prior 0.99", "pretraining prior 0.5"]
    folder = store / "paper" / "fig5-cpu"
    assert {Path(path).parent for path in body["tables"].values()} == {folder}
    assert (folder / "figure.html").read_text().count("plotly") > 1
    assert json.loads((folder / "result.json").read_text())["provenance"]["study"] == "grid_counting"


def test_a_figure_in_words(cli, store, never_run):
    said = cli("reproduce", "fig5", NEW, "--store", store)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Learning what is fine-tuned on, by prior, rate and share of correlated texts.")
    assert "limit: Headline numbers are those at the right end of each line." in said.out
    assert f"written to {store / 'paper' / 'fig5-cpu'}" in said.out.replace("\n", "")
    # It replaces what an earlier call wrote, and is no run of the store.
    assert [path.name for path in (store / "paper").iterdir() if path.name.startswith("fig5")] == ["fig5-cpu"]
    studies = {run["study"] for run in cli("runs", "list", "--store", store, "--json").json}
    assert studies == {"grid_counting"}


def test_what_has_no_numbers_says_where_it_lies(cli, tmp_path):
    said = cli("reproduce", "fig12", "--store", tmp_path / "new").out.splitlines()
    folder = tmp_path / "new" / "paper" / "fig12-cpu"
    assert said[1:] == [f"no single numbers; the figure is {folder / 'figure.html'}, its table {folder / 'table.parquet'}"]


def test_a_table_prints_how_far_it_is_from_the_paper(cli, store, never_run):
    said = cli("reproduce", "tab5", NEW, "--store", store).out
    assert "values beside printed ones: mean absolute difference to the paper" in said
    (held,) = [line for line in said.splitlines() if "printed value within the interval here" in line]
    assert "[" not in held  # a share of cells that are not independent has no interval
    assert said.count("mean absolute difference, ") == 4


@pytest.mark.slow
def test_claims_as_json_and_in_words(cli, store, never_run):
    body = cli("reproduce", "claims", NEW, "--store", store, "--json").json
    assert body["name"] == "claims"
    found = {m["metric"]: m["value"] for m in body["headline"]}
    # At the small rate .8 correlated texts leave .85 - .64 - .1 of the trained ability, with .01 for the mean seed.
    said = "q1: the same at the small rate with 80 % of texts correlated"
    assert found[said] == pytest.approx(0.95 - 0.11 - 0.01, abs=0.005)
    assert found["q2: its accuracy minus that with all texts correlated"] is None
    agrees = pd.read_parquet(body["tables"]["claims"]).set_index("claim")["agrees"]
    assert agrees["q2"] == "not measured"
    assert agrees["pruning"] == "partly"
    assert (store / "paper" / "claims-cpu" / "figure.html").is_file()

    said = cli("reproduce", "claims", NEW, "--store", store)
    assert said.code == 0
    assert "Claims of the paper, whether they agree with what was measured" in said.out
    for claim in agrees.index:
        assert claim in said.out
    assert "note: behaviour of core,from=p99,lr=0.001,share=1.0" in said.out.replace("\n", "")
    assert "nan" not in said.out


@pytest.mark.parametrize("name", ["fig12", "fig16-counting"])
def test_texts_are_drawn_without_training_anything(cli, tmp_path, never_run, name):
    assert cli("reproduce", name, "--store", tmp_path / "empty").code == 0
    assert (tmp_path / "empty" / "paper" / f"{name}-cpu" / "table.parquet").is_file()


@pytest.mark.parametrize("name", ["fig10", "claims"])
def test_without_a_run_an_empty_store_has_nothing_to_show(cli, tmp_path, never_run, name):
    said = cli("reproduce", name, NEW, "--store", tmp_path / "empty").sentence
    assert "without --no-run" in said
    assert not (tmp_path / "empty" / "paper").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fig5x"], "there is no figure or table 'fig5x'; did you mean 'fig"),
        (["claim"], "there is no figure or table 'claim'; did you mean 'claims'?"),
        (["fig5", "--scale", "papper"], "--scale 'papper' is unknown; did you mean 'paper'?"),
    ],
)
def test_bad_input_is_one_sentence(cli, tmp_path, words, message):
    assert message in cli("reproduce", *words, "--store", tmp_path / "empty").sentence


@pytest.mark.parametrize("run", [NEW, "--run"])
@pytest.mark.parametrize("name", ["fig5", "fig12", "claims"])
def test_a_device_that_is_not_there_is_refused_whatever_is_run(cli, store, never_run, name, run):
    assert "toaster" in cli("reproduce", name, run, "--device", "toaster", "--store", store).sentence


def test_what_is_missing_is_run_first(cli, store, monkeypatch):
    asked = []
    monkeypatch.setattr(Study, "run", lambda self, *words, **more: asked.append((self.name, words, more)))
    said = cli("reproduce", "fig5", "--store", store, "--workers", "3", "--device", "cpu")
    assert said.code == 0
    assert asked == [("grid_counting", (3,), {"device": "cpu"})]
    assert "grid_counting" in said.out
