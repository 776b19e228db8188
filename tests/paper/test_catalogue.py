"""Every figure and table by name: its study exists and plans, and the pairs that it asks for are in it."""

from __future__ import annotations

from functools import cache

import pytest

from workbench.errors import UserError
from workbench.paper import published
from workbench.paper.catalogue import Labels, OfPair, Samples, Table, get, reproductions
from workbench.paper.grid import Grid
from workbench.paper.views import X_AXES, View
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study, preset_names

ENTRIES = reproductions()
EVERY = pytest.mark.parametrize("name", ENTRIES)


@cache
def planned(preset: str) -> Grid:
    """The preset with one seed, planned and not run."""
    grid = Grid(Study(load_study(preset, seeds=[0]), Store("nowhere")))
    assert len(grid.axes)
    return grid


def preset_of(name: str) -> str:
    return ENTRIES[name].preset("cpu")


def test_names_are_unique_and_the_procedural_figures_and_tables_are_there():
    from workbench.paper.catalogue import _catalogue

    names = [entry.name for entry in _catalogue()]
    assert len(names) == len(set(names)) == len(ENTRIES)
    assert {f"fig{i}" for i in (5, 6, 7, 8, 9, 10, 26, 27)} <= set(names)
    assert {"tab3-counter", "tab3-largest", "tab4", "tab5", "tab6", "tab7", "tab8"} <= set(names)
    assert "claims" not in names  # a name of the command line


def test_an_unknown_name_is_the_users_to_mend():
    assert get("fig5") == ENTRIES["fig5"]
    with pytest.raises(UserError, match=r"there is no figure or table 'fig5a'; did you mean 'fig5[0-9-]*'"):
        get("fig5a")


@EVERY
@pytest.mark.slow
def test_the_study_of_an_entry_plans_and_has_its_pairs(name):
    preset, shows = preset_of(name), ENTRIES[name].shows
    assert preset in preset_names()
    if isinstance(shows, Labels | Samples):
        task = planned(preset).study.spec.task
        assert task["kind"] in ("pcfg", "rasp")
        return
    grid = planned(preset)
    pairs = (
        shows.pairs(grid)
        if isinstance(shows, View)
        else grid.where(**shows.where)
        if isinstance(shows, OfPair)
        else grid.where()
    )
    assert pairs
    # Every value of a filter is one of the study, so that no part of a figure is missing for a slip.
    for axis, wanted in getattr(shows, "where", {}).items():
        assert all(grid.where(**{axis: value}) for value in wanted)


@EVERY
def test_the_study_of_an_entry_runs_what_it_is_drawn_from(name):
    preset, shows = preset_of(name), ENTRIES[name].shows
    analysis = {View: lambda: shows.analysis, OfPair: lambda: shows.analysis, Table: lambda: "behaviour"}.get(type(shows))
    if analysis is not None:
        assert analysis() in planned(preset).study.spec.analyses
    assert ENTRIES[name].needs_models == (analysis is not None)


@EVERY
def test_no_view_puts_two_pairs_on_one_line(name):
    preset, view = preset_of(name), ENTRIES[name].shows
    if not isinstance(view, View):
        return
    assert view.reads in X_AXES
    grid = planned(preset)
    axes = grid.axes[grid.axes["pair"].isin(view.pairs(grid))].rename(columns={"share": "c_tr"})
    lines = [view.lines] if view.reads in ("accuracy", "revival") else []
    assert not axes.duplicated([axis for axis in (*view.panels, *lines) if axis in axes]).any()


@EVERY
def test_printed_values_come_from_tables_that_are_there(name):
    entry = ENTRIES[name]
    wanted = [entry.published, entry.shows.published if isinstance(entry.shows, Table) else None]
    assert {table for table in wanted if table} <= set(published.names())
    if entry.study == "grid_indexing":
        assert not any(table and "counter" in table for table in wanted)


@pytest.mark.parametrize("name", [name for name, e in ENTRIES.items() if isinstance(e.shows, Labels | Samples)])
def test_texts_are_of_abilities_that_the_task_has(name):
    from workbench.protocols import load_task

    shows = ENTRIES[name].shows
    task = load_task(load_study(preset_of(name)).task)
    asked = [shows.capability] if isinstance(shows, Samples) else [shows.target, shows.partner]
    for capability in asked:
        assert len(task.capability(capability).examples(2, 0)) == 2


def test_the_scale_chooses_the_study():
    assert get("fig5").preset("cpu") == "grid_counting"
    assert get("fig5").preset("paper") == "grid_counting_paper"


@EVERY
def test_the_study_of_an_entry_is_there_at_both_scales(name):
    assert {ENTRIES[name].preset("cpu"), ENTRIES[name].preset("paper")} <= set(preset_names())
