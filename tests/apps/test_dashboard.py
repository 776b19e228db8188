from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from tests.apps.fake_store import damage, failed_run, fake_study, many_runs
from workbench.registry import GROUPS as REGISTERED
from workbench.registry import analyses
from workbench.runs import Store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    from apps.dashboard import parts
    from apps.dashboard.serve import command

APP = Path(__file__).parents[2] / "apps" / "dashboard" / "app.py"
GROUPS = ("lenses", "patching", "directions", "weights", "representations", "curvature")
PAGES = ("overview", "study", *GROUPS, "stories", "paper", "run")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores by name: empty, one run, damaged, full."""
    root = tmp_path_factory.mktemp("stores")
    (root / "empty").mkdir()
    many_runs(root / "one", 1)
    fake_study(root / "full")
    study = fake_study(root / "damaged", seeds=(0,), pairs=("wrapped",))
    failed_run(root / "damaged")
    damage(next(run for _, run in study.runs() if run.kind == "finetune"))
    return root


@pytest.fixture
def open_page(stores, monkeypatch):
    """`(store, page, **address) -> AppTest` after its first run."""

    def open_it(store, page="overview", **address):
        monkeypatch.setenv("WORKBENCH_HOME", str(stores / store))
        st.cache_data.clear()
        st.cache_resource.clear()
        at = AppTest.from_file(str(APP), default_timeout=60)
        if page != "overview":  # switching takes a first run, and drops the address
            at.run().switch_page(f"app_pages/{page}.py")
        for name, value in address.items():
            at.query_params[name] = value
        return at.run()

    return open_it


def python(at):
    """The first piece of code that makes a figure."""
    return next(c.value for c in at.code if c.value.startswith("import workbench"))


def charts(at):
    return [(json.loads(c.proto.spec), c.proto.alt) for c in at.get("plotly_chart")]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "store", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("empty", "one", "damaged")), "full"]
)
def test_every_page_shows_every_store(open_page, store, page):
    at = open_page(store, page)
    assert not at.exception
    assert at.title[0].value == page.capitalize()
    assert not [e.value for e in at.error if "could not be shown" in e.value]
    for spec, said in charts(at):
        assert spec["data"]
        assert len(said) > 20


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_store_names_the_command_that_fills_it(open_page, page):
    at = open_page("empty", page)
    others = {
        "paper": ("workbench reproduce claims", "not held against"),
        "stories": ("make tinystories", "no stories yet"),
    }
    command, said = others.get(page, ("make demo", "no runs yet"))
    assert [code.value for code in at.code] == [command]
    assert said in at.info[0].value


def test_the_paper_page_shows_claims_and_what_was_redone(open_page, stores):
    from workbench.figures import alt
    from workbench.paper.claims import Claim, judge
    from workbench.paper.contrasts import Contrast
    from workbench.paper.grid import Contrasted, Grid
    from workbench.statistics import Interval
    from workbench.studies.handle import Study

    grid = Grid(Study.open(Store(stores / "full"), "quickstart"))
    sure = Contrast("a number", "above", 0.5, lambda _: Contrasted(Interval(0.7, 0.6, 0.8), 100, (0.6, 0.8)))
    unsure = Contrast("another", "below", 0.5, lambda _: Contrasted(Interval(0.5, 0.4, 0.6), 100, (0.4, 0.6)))
    absent = Contrast("a third", "below", 0.5, lambda grid: grid.contrast("behaviour", lambda _: None, []))
    claims = (Claim("q1", "It is so.", (sure,)), Claim("q2", "It is <b>not</b>.", (sure, unsure, absent), "Too small."))
    folder = stores / "full" / "paper" / "claims-cpu"
    folder.mkdir(parents=True)
    judge(grid, claims).save(folder)
    (folder.parent / "fig5-cpu").mkdir()
    (folder.parent / "fig5-cpu" / "result.json").write_text("{")
    at = open_page("full", "paper")
    assert not at.exception
    said = " ".join(m.value for m in at.markdown)
    assert "It is so" in said
    assert "\\<b\\>not\\</b\\>" in said
    assert "Too small" in " ".join(c.value for c in at.caption)
    frames = [f.value for f in at.dataframe]
    assert frames[0]["value [95 %]"].tolist() == ["0.70 [0.60, 0.80]"]
    assert frames[1]["agrees"].tolist() == ["yes", "unclear", "not measured"]
    assert any("Note" in c.value and "has no pairs" in c.value for c in at.caption)
    assert charts(at)[0][1] == alt(judge(grid, claims))
    assert "holds no readable result" in at.error[0].value  # the other figure is damaged, and hides nothing
    (folder.parent / "claims-paper").mkdir()
    judge(grid, claims[:1]).save(folder.parent / "claims-paper")
    at = open_page("full", "paper", claims="claims-paper")
    assert at.dataframe[0].value["agrees"].tolist() == ["yes"]
    assert "Too small" not in " ".join(c.value for c in at.caption)


def test_overview_tells_findings_and_draws_all_runs(open_page, stores):
    at = open_page("full")
    said = " ".join(m.value for m in at.markdown)
    assert "counting a is masked in wrapped; counting b is inconclusive in wrapped" in said
    assert "reverse fine\\-tuning takes 0\\.20 \\[0\\.18, 0\\.22\\]" in said
    ((spec, _),) = charts(at)
    runs = Store(stores / "full").runs()
    assert len(at.dataframe[-1].value) == len(runs)
    drawn = {row[0] for t in spec["data"] if "customdata" in t for row in t["customdata"]}
    assert drawn == {run.key for run in runs if run.seed == 0}
    ((spec, _),) = charts(open_page("full", **{"lineage-seed": "all seeds"}))
    assert {row[0] for t in spec["data"] if "customdata" in t for row in t["customdata"]} == {run.key for run in runs}
    assert at.dataframe[0].value["done"].tolist() == ["50 of 50"]


def test_the_graph_of_a_study_holds_what_another_study_ran_for_it(open_page, stores):
    study = fake_study(stores / "shared", seeds=(0,), pairs=("wrapped",))
    (stores / "shared" / "earlier").mkdir()
    (run,) = [run for stage, run in study.runs() if stage.name == "pretrain-base-s0"]
    spec = next(run.path.glob("spec.yaml"))
    spec.write_text(spec.read_text().replace("study: quickstart", "study: earlier"))
    run.path.rename(stores / "shared" / "earlier" / run.path.name)
    ((drawn, _),) = charts(open_page("shared", lineage="quickstart"))
    keys = {row[0] for t in drawn["data"] if "customdata" in t for row in t["customdata"]}
    assert keys == {run.key for run in Store(stores / "shared").runs()}
    assert run.key in keys
    ((drawn, _),) = charts(open_page("shared", lineage="earlier"))
    assert {row[0] for t in drawn["data"] if "customdata" in t for row in t["customdata"]} == {run.key}


def test_a_damaged_run_is_listed_with_its_reason_and_hides_no_other(open_page):
    at = open_page("damaged")
    table = at.dataframe[-1].value
    assert table["state"].tolist()[:2] == ["damaged", "failed"]
    assert "status.json cannot be read" in table["reason"][0]
    assert (table["state"] == "done").sum() == len(table) - 2
    assert "1 run is damaged" in at.warning[0].value


def test_run_page_says_how_to_mend(open_page, stores):
    damaged = next(run for run in Store(stores / "damaged").runs() if run.damaged)
    at = open_page("damaged", "run", run=f"{damaged.stage}-{damaged.key}")
    assert at.error[0].value.startswith("Damaged: status")
    assert at.code[0].value == f"workbench runs remove {damaged.name} --with-children\nworkbench study run quickstart"
    at = open_page("damaged", "run", run="0123456789")  # the key alone is enough
    assert at.selectbox(key="run").value == "quickstart/broken-s0-0123456789"
    assert at.warning[0].value.startswith("Failed: ValueError\\: \\<b\\>loss")


def test_study_page_draws_what_the_notebook_draws(open_page, stores):
    from workbench.figures import alt, figure
    from workbench.studies.handle import Study

    at = open_page("full", "study", pair="wrapped", side="true")
    study = Study.open(Store(stores / "full"), "quickstart")
    found = charts(at)
    assert len(found) == 4
    for (spec, said), name in zip(found, study.spec.analyses, strict=True):
        result = study.result("wrapped", name)
        assert said == alt(result)
        expected = json.loads(figure(result).to_json())["data"]
        assert [t.get("name") for t in spec["data"]] == [t.get("name") for t in expected]
        assert [len(t["x"]) for t in spec["data"] if isinstance(t["x"], list)] == [
            len(t["x"]) for t in expected if isinstance(t["x"], list)
        ]
    assert "study.result('wrapped', 'behaviour')" in python(at)


def test_an_analysis_under_a_name_of_its_own_has_its_tab(open_page, stores):
    from workbench.studies.handle import Study
    from workbench.studies.loading import load_study

    study = fake_study(stores / "named", seeds=(0,), pairs=("wrapped",))
    spec = load_study("quickstart", ["analyses.pruning_heads.analysis=pruning", "analyses.pruning_heads.units=heads"], [0])
    Study(spec.model_copy(update={"finetune": study.spec.finetune}), study.store).save()
    at = open_page("named", "study", pair="wrapped", side="true")
    assert not at.exception
    assert "Pruning heads" in [header.value for header in at.subheader]
    assert at.info[0].value == "Pruning heads is not done yet for this pair."
    assert f"workbench study run quickstart --store {stores / 'named'}" in [c.value for c in at.code]


def test_one_seed_or_all(open_page):
    at = open_page("full", "study", pair="erased", seed="1")
    ((spec, _),) = charts(at)
    assert "seed 1" in spec["layout"]["title"]["subtitle"]["text"]
    assert "seed=1" in python(at)
    at.selectbox(key="seed").select("all seeds").run()
    ((spec, _),) = charts(at)
    assert "seeds 0 and 1" in spec["layout"]["title"]["subtitle"]["text"]


def test_a_result_of_some_seeds_only_says_which_are_missing(open_page, stores):
    from workbench.studies.handle import Study

    study = fake_study(stores / "partly", seeds=(0,), pairs=("wrapped",))
    Study(study.spec.model_copy(update={"seeds": (0, 1)}), study.store).save()
    at = open_page("partly", "study", pair="wrapped")
    assert [w.value for w in at.warning] == ["Not all seeds yet; to be done: 1."]
    at.selectbox(key="seed").select("0").run()
    assert not at.warning


@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=[pytest.mark.slow] if number else []) for number, name in enumerate(GROUPS)]
)
def test_the_page_of_a_group_says_how_to_run_what_is_not_done(open_page, stores, group):
    at = open_page("full", group, pair="learned")
    assert not at.exception
    tabs = [tab.label for tab in at.tabs]
    names = [name for name, entry in analyses.entries().items() if entry.group == group]
    assert [tab.lower().replace(" ", "_") for tab in tabs] == names
    if names:
        assert "is not done yet" in at.info[0].value
        assert at.code[0].value == f"workbench analyze quickstart:learned --with {names[0]} --store {stores / 'full'}"


def test_every_group_has_a_page_or_is_on_that_of_the_study():
    assert {entry.group for entry in analyses.entries().values()} <= {"evidence", *GROUPS} == set(REGISTERED)


def test_the_card_has_a_line_for_what_was_not_run_and_words_to_quote(open_page):
    at = open_page("full")
    (wrapped,) = [m.value for m in at.markdown if "| pruning |" in m.value and ":green[masked]" in m.value][:1]
    assert ":gray[cross\\-model patching]" in wrapped
    assert "| revival ratio | steps against never had it 0\\.20 \\[0\\.18, 0\\.22\\] |" in wrapped
    quotes = [c.value for c in at.code if c.value.startswith("In wrapped")]
    assert quotes[0].startswith("In wrapped (seeds 0 and 1), counting a is masked: accuracy on count_a went from")


@pytest.mark.parametrize(("page", "address"), [("study", {"pair": "wraped"}), ("run", {"run": "pretrain-base-s0"})])
@pytest.mark.slow
def test_a_stale_address_gets_a_kind_answer(open_page, page, address):
    at = open_page("full", page, **address)
    assert not at.exception
    (key,) = address
    assert at.warning[0].value.startswith(f"This {key} is not here:")
    assert "Nearest: " in at.warning[0].value
    assert charts(at)


def test_a_broken_result_is_a_sentence_and_hides_no_other(open_page, stores, tmp_path):
    import shutil

    root = stores / "cut"
    shutil.copytree(stores / "full", root)
    run = next(r for r in Store(root).runs() if r.stage == "pruning-wrapped-s0")
    table = run.path / "table.parquet"
    table.write_bytes(b"x" * table.stat().st_size)  # of the right length, so that only reading it tells
    at = open_page("cut", "run", run=run.name)
    assert not at.exception
    assert "holds no readable result" in at.error[0].value
    assert at.code[-1].value.startswith("{")  # provenance is still there
    assert "counting a is masked in wrapped" in " ".join(m.value for m in open_page("cut").markdown)
    at = open_page("cut", "study", pair="wrapped", side="true")
    assert len(at.error) == 1
    assert len(charts(at)) == 3
    table.write_bytes(b"cut")  # a store knows the lengths of its files
    assert "table\\.parquet has 3 bytes" in open_page("cut", "run", run=run.name).error[0].value


def test_errors_stop_at_the_seam(open_page, monkeypatch):
    monkeypatch.setattr("workbench.runs.Store.runs", lambda self, study=None: 1 / 0)
    at = open_page("full")
    assert not at.exception
    assert "The page Overview could not be shown: division by zero" in at.error[0].value
    assert "ZeroDivisionError" in at.code[0].value


def test_names_are_shown_letter_by_letter():
    assert parts.plain("**a** <b> [x](y) $1$ :red[z]") == (r"\*\*a\*\* \<b\> \[x\]\(y\) \$1\$ \:red\[z\]")


def test_a_thousand_runs_in_five_seconds(open_page, stores):
    many_runs(stores / "thousand", 1000)
    open_page("one")  # imports are paid by whoever comes first
    started = time.perf_counter()
    at = open_page("thousand", **{"lineage-seed": "all seeds"})
    took = time.perf_counter() - started
    assert not at.exception
    assert len(at.dataframe[-1].value) == 1000
    assert "200 of 1,000 runs are drawn" in " ".join(c.value for c in at.caption)
    assert took < 5


def test_the_server_listens_on_this_machine_only_and_sends_nothing_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    argv, environment = command(Path("store"), 8600)
    assert argv[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(argv[4]) == APP
    assert {"--server.address=localhost", "--server.port=8600", "--server.headless=true"} <= set(argv)
    assert "--browser.gatherUsageStats=false" in argv
    assert environment["WORKBENCH_HOME"] == str(Path("store").absolute())
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(APP.parents[2]), "/somewhere"]


def test_the_theme_is_found_from_any_working_directory(tmp_path):
    show = "from streamlit import config; config._main_script_path = {!r}; print(config.get_option('theme.dark.primaryColor'))"
    code = [sys.executable, "-c", show.format(str(APP))]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("#56B4E9")
