"""Models whose history is known by construction: the verdict tells them apart (one seed, minutes)."""

from __future__ import annotations

import pytest

from workbench.runs import Store
from workbench.studies.handle import Study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, str]:
    study = Study.load("organisms", Store(tmp_path_factory.mktemp("organisms")), seeds=[0]).run(progress=False)
    return {v.pair: v.verdict for v in study.verdicts() if v.capability == "count_a"}


def test_every_history_is_told(verdicts):
    assert verdicts == {"copy": "untouched", "masked": "masked", "never": "erased", "overwritten": "erased"}
