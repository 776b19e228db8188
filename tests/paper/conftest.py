"""The small grid, done, made once; and copies of it in which something is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.paper.fake_grid import MAKERS, made_once
from workbench.paper.grid import Grid
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import load_study
from workbench.studies.stage import PairPlan


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_once(tmp_path_factory)


@pytest.fixture(scope="session")
def grid(study: Study) -> Grid:
    return Grid(study)


@pytest.fixture
def without(study: Study, tmp_path: Path) -> Callable[[Callable[[PairPlan, str], bool]], Grid]:
    """`without(lambda pair, analysis: ...)` is the grid in a store that lacks these results."""

    def make(missing: Callable[[PairPlan, str], bool]) -> Grid:
        root = tmp_path / "runs"
        shutil.copytree(study.store.root, root, copy_function=os.link)
        copy = Study(study.spec, Store(root))
        for planned in copy.plan.pairs:
            for analysis, stage in planned.analyses.items():
                run = copy.store.find(stage.key)
                if run is not None and missing(planned, analysis):
                    shutil.rmtree(run.path)
        return Grid(Study(study.spec, Store(root)))

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The core of the preset with the invented numbers of `fake_grid.said`, two seeds, in memory alone."""
    study = Study(load_study("grid_counting"), Store(tmp_path_factory.mktemp("whole")))
    grid = Grid(study)
    for planned in study.plan.pairs:
        if planned.name.startswith("core,"):
            for analysis in planned.analyses:
                result = MAKERS[analysis](planned)
                pooled = replace(result, provenance={**result.provenance, "seeds": [0, 1]})
                grid.read_results.update(
                    {(planned.name, analysis, planned.seed): result, (planned.name, analysis, None): pooled}
                )
    return grid
