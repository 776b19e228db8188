"""Stories that nobody wrote, a tokenizer trained on them, and the folder of real data if there is one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tinystories.tokenizer import StoryTokenizer, train_bpe


def made_up_stories(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "el")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(400)]
    stories = []
    for _ in range(n):
        lines = []
        for _ in range(rng.integers(2, 6)):
            said = list(rng.choice(words, rng.integers(3, 9)))
            lines.append(f'{said[0].title()} said, "{" ".join(said[1:])}!"' if rng.random() < 0.5 else " ".join(said) + ".")
        stories.append("\n".join(lines))
    return stories


@pytest.fixture(scope="session")
def made_up() -> list[str]:
    return made_up_stories(300, 0)


@pytest.fixture(scope="session")
def own_tokenizer(made_up: list[str], tmp_path_factory: pytest.TempPathFactory) -> StoryTokenizer:
    return train_bpe(made_up, 600, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that REVIVAL_DATA names; tests that need it are skipped without."""
    folder = Path(os.environ.get("REVIVAL_DATA", ""))
    if not os.environ.get("REVIVAL_DATA") or not folder.is_dir():
        pytest.skip("REVIVAL_DATA names no folder")
    return folder
