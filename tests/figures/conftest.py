"""Results around invented numbers, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.fake_store import fake_study
from workbench.results import Result
from workbench.studies.handle import Study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root: Path = tmp_path_factory.mktemp("figures")
    return fake_study(root, pairs=("wrapped", "learned"))


@pytest.fixture(scope="session")
def result(study: Study) -> Callable[..., Result]:
    """`(analysis, pair="wrapped", seed=None) -> Result`."""

    def find(analysis: str, pair: str = "wrapped", seed: int | None = None) -> Result:
        found = study.result(pair, analysis, seed)
        assert found is not None
        return found

    return find
