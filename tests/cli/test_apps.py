from __future__ import annotations

import sys
import types

import pytest


def test_report_of_no_such_study(cli):
    assert "has no study 'tinny'; did you mean 'tiny'?" in cli("report", "tinny").sentence


def test_report_writes_where_it_is_told(cli, copied, tmp_path, monkeypatch):
    asked = []
    module = types.ModuleType("workbench.report")
    module.write_report = lambda study, path: (asked.append((study.name, path)), path)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "workbench.report", module)
    assert cli("report", "tiny").out == f"{copied.store.root / 'tiny' / 'report.html'}\n"
    assert cli("report", "tiny", "--out", tmp_path / "r.html").out == f"{tmp_path / 'r.html'}\n"
    assert asked == [("tiny", copied.store.root / "tiny" / "report.html"), ("tiny", tmp_path / "r.html")]


def test_the_dashboard_is_what_is_installed(cli, whole, monkeypatch):
    serve = types.ModuleType("apps.dashboard.serve")
    code = "import os, sys; sys.exit(7 if os.environ['STORE'] == sys.argv[1] and sys.argv[2] == '8600' else 1)"
    serve.command = lambda root, port: ([sys.executable, "-c", code, str(root), str(port)], {"STORE": str(root)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apps.dashboard.serve", serve)
    said = cli("app", "--port", "8600")
    assert said.code == 7
    assert "dashboard on http://localhost:8600" in said.out


@pytest.mark.parametrize("port", ["80", "x", "99999"])
def test_a_port_that_cannot_be(cli, port):
    said = cli("app", "--port", port)
    assert (said.code, "Traceback" in said.err) == (2, False)
