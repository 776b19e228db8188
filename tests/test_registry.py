"""The registry reads files: what it lists is what the modules declare, and listing imports none of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import workbench
from workbench.analysis import Analysis
from workbench.errors import UserError
from workbench.registry import Registry, analyses

NOVEL = '''"""How new is this?

More words – not all of them ASCII.
"""

from workbench.analysis import Settings, analysis
from workbench.results import Result
from workbench.subjects import Pair


class NovelSettings(Settings):
    """None."""


def helper() -> None: ...


@analysis(version=3, paper="[New+26]", needs=("arms",))
def novel(subject: Pair, settings: NovelSettings) -> Result:
    """Not the summary."""
    return Result("novel", {}, ())
'''


def python(code, folder):
    """What a fresh process prints that finds packages in `folder` first."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listing_imports_neither_the_modules_nor_anything_heavy(tmp_path):
    heavy = ["torch", "transformers", "pandas", "numpy", "workbench.analyses", "workbench.analyses.pruning"]
    code = f"""
import sys, json
from workbench.registry import analyses
names = [entry.name + entry.summary for entry in analyses.entries().values()]
print(json.dumps([len(names), [m for m in {heavy} if m in sys.modules]]))"""
    count, imported = json.loads(python(code, tmp_path))
    assert count >= 4
    assert imported == []


def test_what_the_files_say_is_what_the_modules_are():
    for name, entry in analyses.entries().items():
        function = entry.load()
        assert isinstance(function, Analysis)
        assert (function.__name__, function.version, function.paper) == (name, entry.version, entry.paper)
        assert function.__module__ == entry.module
        assert entry.summary
        assert (sys.modules[entry.module].__doc__ or "").startswith(entry.summary)
        assert getattr(workbench.analyses, name) is function


def test_names_are_sorted_and_are_those_of_the_files():
    files = [p.stem for p in Path(workbench.__file__).parent.joinpath("analyses").glob("[!_]*.py")]
    curvature = [name for name, entry in analyses.entries().items() if entry.module == f"workbench.curvature.{name}"]
    assert list(analyses.names()) == sorted(files + curvature)
    assert "maps" not in curvature  # a module of the package that declares no analysis


def test_revival_waits_for_its_arms():
    assert analyses["revival"].needs == ("arms",)
    assert analyses["pruning"].needs == ()


def test_an_unknown_name_is_answered_by_a_near_one():
    with pytest.raises(UserError, match=r"there is no analysis 'prunning'; did you mean 'pruning'\?"):
        analyses["prunning"]


def test_an_empty_package_has_no_entries():
    empty = Registry(("workbench.presets",), "lab")
    assert empty.names() == ()
    with pytest.raises(UserError, match="there is no lab 'x'; known: none"):
        empty["x"]


def test_a_new_file_is_found_and_nothing_else_has_to_be_told(tmp_path):
    shutil.copytree(Path(workbench.__file__).parent, tmp_path / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "workbench" / "analyses"
    (folder / "novel.py").write_text(NOVEL, encoding="utf-8")
    (folder / "_private.py").write_text(NOVEL.replace("novel", "_private"), encoding="utf-8")
    (folder / "library.py").write_text('"""Declares nothing."""\n\n\ndef library(): ...\n')
    code = """
import json, workbench as wb
from dataclasses import asdict
from workbench.registry import analyses
assert wb.__file__.startswith({root!r}), wb.__file__
assert analyses["novel"].load() is wb.analyses.novel
assert "novel" in wb.analyses.__all__
print(json.dumps([asdict(analyses["novel"]), "library" in analyses.names(), "_private" in analyses.names()]))"""
    entry, library, private = json.loads(python(code.format(root=str(tmp_path)), tmp_path))
    assert entry == {
        "name": "novel",
        "module": "workbench.analyses.novel",
        "summary": "How new is this?",
        "version": 3,
        "paper": "[New+26]",
        "needs": ["arms"],
        "passes": 60,
        "holds": 500,
        "n": None,
        "group": "evidence",
        "uses": [],
        "minutes": 0,
    }
    assert not library
    assert not private
