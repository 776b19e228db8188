from __future__ import annotations

import pytest
from studies.tiny import TINY, TRAININGS, run_once

from workbench.studies.handle import Study


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The tiny study with all its stages done; tests read it and leave it as it is."""
    return run_once(tmp_path_factory, TINY)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The longer trainings as they come out when nothing stops them."""
    return run_once(tmp_path_factory, TRAININGS)
