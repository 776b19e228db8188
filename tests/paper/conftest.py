"""The small grid, done, made once; and copies of it in which something is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.paper.fake_grid import made_once
from workbench.paper.grid import Grid
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.plan import PairPlan


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
