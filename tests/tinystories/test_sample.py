"""The bundled stories: clean, of several sources, whole, and chosen by a rule that is written down here and can be run again."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from workbench.seeds import numpy_generator

FOLDER = Path(str(resources.files("tinystories"))) / "sample"
CLEAN = {
    "czhou578/train-gpt2:data/tinystories/test.bin": 100,
    "JasonYao3/Transform-LM:tinystories_train.bin+tinystories_val.bin": 100,
    "mines-opt-ml/decoding-gpt:data/tinystories_10k.txt": 80,
    "maxme1/tiny-stories:assets/tiny-stories.json": 80,
    "gusjengis/toy-RNN:data/tinystories_sample.txt": 60,
}
"""Sources without damaged characters, and how many stories of each are bundled."""
STORIES = [json.loads(line) for line in (FOLDER / "stories.jsonl").read_text(encoding="utf-8").splitlines()]
PROMPTS = [json.loads(line) for line in (FOLDER / "instruct_prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def is_clean(text):
    """ASCII, of ordinary length, quotes in pairs, from a capital to the end of a sentence."""
    whole = re.match(r"[A-Z\"]", text) and re.search(r"[.!?]\"?$", text)
    return text.isascii() and 400 <= len(text) <= 1500 and text.count('"') % 2 == 0 and "\r" not in text and bool(whole)


def choose(stories):
    """Of the clean stories of each source so many, drawn with seed 0, in the order of the file."""
    chosen = []
    for source, n in CLEAN.items():
        own = [i for i, story in enumerate(stories) if story["source"] == source and is_clean(story["text"])]
        chosen += numpy_generator(0, "sample", source).choice(own, n, replace=False).tolist()
    return [{"text": stories[i]["text"], "source": stories[i]["source"]} for i in sorted(chosen)]


def test_the_sample_is_clean_and_small():
    assert len(STORIES) == sum(CLEAN.values())
    assert all(set(story) == {"text", "source"} and is_clean(story["text"]) for story in STORIES)
    assert Counter(story["source"] for story in STORIES) == CLEAN
    assert (FOLDER / "stories.jsonl").stat().st_size < 400_000


def test_the_prompts_are_those_that_were_found():
    """Counts of the collection's own record."""
    features = [name for prompt in PROMPTS for name in prompt["features"]]
    assert len(PROMPTS) == 46
    assert {name: features.count(name) for name in features} == {
        "Dialogue": 26, "Twist": 9, "BadEnding": 6, "Foreshadowing": 5, "Conflict": 4, "MoralValue": 3,
    }  # fmt: skip
    assert sum(bool(prompt["words"]) for prompt in PROMPTS) == 35
    assert sum(prompt["orphan_previous_summary"] is not None for prompt in PROMPTS) == 12


def test_licence_attribution_and_changes_are_named():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("CDLA-Sharing-1.0", "https://cdla.dev/sharing-1-0/", "Eldan", "Li", "arXiv:2305.07759", "Changes"):
        assert words in text
    assert all(source.split(":")[0] in text for source in {story["source"] for story in STORIES})


@pytest.mark.skipif("REVIVAL_DATA" not in os.environ, reason="needs the whole collection in REVIVAL_DATA")
def test_the_rule_gives_the_sample():
    with gzip.open(Path(os.environ["REVIVAL_DATA"]) / "tinystories/stories.jsonl.gz", "rt", encoding="utf-8") as file:
        assert choose([json.loads(line) for line in file]) == STORIES
