from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pytest

from tests.apps.fake_store import fake_study
from workbench.report import python_code, result_html, write_report
from workbench.results import Evidence, Metric, Result


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._script = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self._script = found.get("id", "main") if tag == "script" else None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = data

    def handle_endtag(self, tag):
        self._script = None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(study, tmp_path_factory):
    return write_report(study, tmp_path_factory.mktemp("out") / "deep" / "report.html").read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_is_one_file_that_needs_nothing_from_outside(text, page):
    assert len(text.encode()) < 6e6
    linked = [a.get("src") or a.get("href") for _, a in page.tags if a.get("src") or a.get("href")]
    assert all(link.startswith(("#", "data:")) for link in linked)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert [a.get("id") for t, a in page.tags if t == "script"].count("plotly") == 1


def test_a_figure_per_pair_and_analysis_with_its_text(study, page):
    wanted = {f"{pair}-{analysis}" for pair in study.pair_names for analysis in study.spec.analyses}
    figures = {a["id"]: a for t, a in page.tags if t == "div" and a.get("class") == "figure"}
    assert set(figures) == wanted
    assert len(wanted) == 12
    for name, attributes in figures.items():
        assert len(attributes["aria-label"]) > 40
        assert len(json.loads(page.scripts[f"{name}-data"])["data"]) > 3


def test_every_table_can_be_downloaded_as_it_was_drawn(study, page):
    links = {a["download"]: a["href"] for t, a in page.tags if t == "a" and a.get("href", "").startswith("data:text/csv")}
    result = study.result("wrapped", "revival")
    assert {f"wrapped-revival-{name}.csv" for name in result.tables} <= set(links)
    rows = list(csv.DictReader(io.StringIO(unquote(links["wrapped-revival-table.csv"].partition(",")[2]))))
    assert len(rows) == len(result.table)
    assert [row["arm"] for row in rows] == list(result.table["arm"])
    assert [float(row["value"]) for row in rows] == pytest.approx(list(result.table["value"]), abs=1e-5)


def test_verdicts_with_reasons_and_evidence(study, text):
    for verdict in study.verdicts():
        assert f'<span class="verdict">{verdict.verdict}</span>' in text
        assert verdict.reason[1:].split("'")[0] in text
        for line in verdict.evidence:
            assert line.text.split("'")[0] in text
    assert "0.20 [0.18, 0.22]" in text
    assert "points to masked" in text
    assert "finetune:" in text
    assert "Limits" in text


def test_missing_results_are_named(study, tmp_path):
    spec = study.spec.model_copy(update={"seeds": (77,)})
    text = write_report(replace(study, spec=spec), tmp_path / "r.html").read_text()
    assert text.count("There is no result yet") == 12
    assert "0 of 26 stages are done" in text or re.search(r"0 of \d+ stages are done", text)
    assert 'id="plotly"' not in text


def test_names_and_texts_are_escaped(study, tmp_path):
    spec = study.spec.model_copy(update={"note": "<script>alert(1)</script> & </style>"})
    text = write_report(replace(study, spec=spec), tmp_path / "r.html").read_text()
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;/style&gt;" in text


def test_data_cannot_end_its_script_element():
    from workbench.report_page import json_block

    block = json_block("x", json.dumps({"a": "</script><script>alert(1)</script>"}))
    assert block.count("</script>") == 1
    assert json.loads(Page(block).scripts["x"]) == {"a": "</script><script>alert(1)</script>"}


def test_the_python_runs_and_makes_the_result(study, monkeypatch):
    code = python_code(study.store.root, study.name, "wrapped", "pruning", 1)
    code = code.replace("figure(result).show()", "made = figure(result)")
    monkeypatch.setenv("WORKBENCH_HOME", "elsewhere")  # the code names its store
    names: dict = {}
    exec(code, names)
    pd.testing.assert_frame_equal(names["result"].table, study.result("wrapped", "pruning", 1).table)
    assert len(names["made"].data) > 3


def test_a_result_in_a_notebook():
    evidence = (Evidence("x", "gap", 0.5, 0.4, 0.6, 10, "masked", "a < b & c"),)
    result = Result("x", {}, (Metric("gap", 0.5, 0.4, 0.6, 10, "accuracy"),), evidence, ("only <this>",))
    html = result_html(result)
    assert "0.50 [0.40, 0.60]" in html
    assert "a &lt; b &amp; c (points to masked)" in html
    assert "only &lt;this&gt;" in html
    assert "<script" not in html
    bundle = result._repr_mimebundle_()
    assert "0.50" in bundle["text/html"]
