"""A corpus: what is dropped, which side a story is on and when it keeps it, what the cache knows, and how much memory it takes."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinystories import building, corpus
from tinystories.building import SPLITS, normalised, sides, text_hash
from tinystories.corpus import describe, leakage, load_corpus
from workbench.errors import UserError

OWNERS = ("ann", "bob")


def story(i):
    return f'Once upon a time there was a cat with {i} toys. "Look!" said Sam.'


def write(path, stories):
    """`(text, source)` as JSON lines."""
    path.write_text("".join(json.dumps({"text": text, "source": source}) + "\n" for text, source in stories))
    return str(path)


def sides_of(found):
    return {text: split for split in SPLITS for text in found.texts(split)}


@pytest.fixture
def load(tmp_path):
    def run(name, **settings):
        return load_corpus(str(name), cache=tmp_path / "cache", **settings)

    return run


class TestCleaning:
    ROWS = (
        ("A dog ran.\r\nHe sat.\rHe slept.\n", "ann"),
        (" \n ", "ann"),
        ("“Hi,” said the dog’s mum.", "ann"),
        ("a DOG ran.  He sat. he slept.", "bob"),  # the first again
        ('"Hi," said the dog\'s mum.', "bob"),  # the third again
        ("A dog ran. He sat. He slept!", "bob"),
        ("", "ann"),
    )
    KEPT = (
        ("A dog ran.\nHe sat.\nHe slept.", "ann"),
        ("“Hi,” said the dog’s mum.", "ann"),
        ("A dog ran. He sat. He slept!", "bob"),
    )

    def test_empty_ones_and_repeats_are_dropped_and_counted(self, tmp_path, load):
        found = load(write(tmp_path / "a.jsonl", self.ROWS))
        assert list(zip(found.texts("train"), found.split("train")["source"], strict=True)) == list(self.KEPT)
        assert len(found) == 3
        assert found.counts == {
            "read": 7, "skipped": 0, "empty": 2, "repeated": 2, "kept": 3, "by_source": {"ann": 2, "bob": 1}, "held_out": 0, "leaked": 0,
        }  # fmt: skip

    def test_the_hash_is_that_of_the_stories_kept(self, tmp_path, load):
        lines = b"".join(json.dumps(list(row), ensure_ascii=False).encode() + b"\n" for row in self.KEPT)
        assert load(write(tmp_path / "a.jsonl", self.ROWS)).sha256 == hashlib.sha256(lines).hexdigest()
        assert load(write(tmp_path / "b.jsonl", self.KEPT)).sha256 == hashlib.sha256(lines).hexdigest()

    @pytest.mark.parametrize("batch", [1, 2, 3, 100])
    @pytest.mark.parametrize("limit", [1, 2, 3, None])
    def test_batches_change_nothing_and_a_limit_stops_at_a_story(self, tmp_path, load, monkeypatch, batch, limit):
        monkeypatch.setattr(building, "BATCH", batch)
        found = load(write(tmp_path / "a.jsonl", self.ROWS), limit=limit)
        assert list(found.texts("train")) == [text for text, _ in self.KEPT][:limit]
        read = {1: 1, 2: 3, 3: 6, None: 7}[limit]
        assert [found.counts[key] for key in ("read", "empty", "repeated", "kept")] == [
            read, sum(i in (1, 6) for i in range(read)), sum(i in (3, 4) for i in range(read)), limit or 3,
        ]  # fmt: skip

    @given(st.text(max_size=30))
    def test_what_counts_as_the_same(self, text):
        changed = text.upper().replace("'", "’").replace('"', "”").replace(" ", " \n\t")
        assume(text.upper().casefold() == text.casefold())  # not so for a few letters, such as a dotless i
        assert normalised(changed + "\n") == normalised(text)

    def test_what_does_not(self):
        assert len({normalised(text) for text in ("a b", "ab", "a, b", "a-b", "á b", "'a b'", '"a b"')}) == 7

    def test_files_name_the_source_where_rows_do_not(self, tmp_path, load):
        folder = tmp_path / "set"
        folder.mkdir()
        (folder / "b.txt").write_text("Two.<|endoftext|>Three.")
        (folder / "a.jsonl").write_text('{"text": "One."}\n{"text": "Four.", "source": "web"}\n')
        assert load(folder).counts["by_source"] == {"a": 1, "web": 1, "b": 2}


class TestSides:
    @given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)), unique_by=lambda x: x[0], max_size=150))
    def test_percentiles_of_the_hashes_within_each_source(self, stories):
        """Against the rule written out, story by story."""
        hashes, sources = np.array([h for h, _ in stories], np.uint64), np.array([s for _, s in stories], int)
        found = [SPLITS[i] for i in sides(hashes, sources)]
        for h, s in stories:
            own = sorted(x for x, source in stories if source == s)
            test, validation = (math.floor(share * len(own) + 0.5) for share in (0.10, 0.05))
            expected = "test" if own.index(h) < test else "validation" if own.index(h) < test + validation else "train"
            assert found[[x for x, _ in stories].index(h)] == expected

    def test_shares_are_exact_in_every_source(self, tmp_path, load):
        sizes = {"ann": 200, "bob": 130, "cleo": 9}
        found = load(
            write(tmp_path / "a.jsonl", [(f"{source} {story(i)}", source) for source, n in sizes.items() for i in range(n)])
        )
        counts = {split: Counter(found.split(split)["source"]) for split in SPLITS}
        assert counts["test"] == {"ann": 20, "bob": 13, "cleo": 1}
        assert counts["validation"] == {"ann": 10, "bob": 7}
        assert counts["train"] == {"ann": 170, "bob": 110, "cleo": 8}
        assert set(found.dataset["split"]) == set(SPLITS)
        for split in SPLITS:
            assert set(found.split(split)["split"]) == {split}

    def test_neither_order_nor_files_nor_spelling_matter(self, tmp_path, load):
        stories = [(story(i), OWNERS[i % 2]) for i in range(300)]
        folder = tmp_path / "set"
        folder.mkdir()
        write(folder / "b.jsonl", stories[:100])
        write(folder / "a.jsonl", [(text.upper(), source) for text, source in reversed(stories[100:])])
        first = sides_of(load(write(tmp_path / "a.jsonl", stories)))
        assert {text.casefold(): side for text, side in sides_of(load(folder)).items()} == {
            text.casefold(): side for text, side in first.items()
        }

    def test_stories_are_dealt_out_over_batches(self, tmp_path, load, monkeypatch):
        stories = [(story(i), OWNERS[i % 2]) for i in range(300)]
        first = load(write(tmp_path / "a.jsonl", stories))
        monkeypatch.setattr(building, "BATCH", 7)
        assert load(write(tmp_path / "b.jsonl", stories)).dataset.to_list() == first.dataset.to_list()

    def test_added_stories_move_only_those_between_the_old_and_new_borders(self, tmp_path, load):
        stories = [(story(i), OWNERS[i % 2]) for i in range(2000)]
        before = sides_of(load(write(tmp_path / "a.jsonl", stories)))
        after = sides_of(load(write(tmp_path / "b.jsonl", stories + [(story(i), "bob") for i in range(2000, 2300)])))
        moved = [text for text in before if before[text] != after[text]]
        assert all(int(text.split()[9]) % 2 for text in moved)  # none of ann's
        assert 0 < len(moved) <= 20  # of bob's 1000; about sqrt(.05 * .95 * 300) + sqrt(.1 * .9 * 300) = 9 expected
        for text in moved:  # only to the side next to it
            assert abs(SPLITS.index(before[text]) - SPLITS.index(after[text])) == 1

    def test_the_hash_is_the_same_everywhere(self):
        assert text_hash("“One”  DAY\n") == text_hash('"one" day') == int.from_bytes(
            hashlib.blake2b(b'"one" day', digest_size=8).digest(), "little"
        )  # fmt: skip


class TestLeakage:
    def test_none_by_construction(self, tmp_path, load):
        assert leakage(load(write(tmp_path / "a.jsonl", [(story(i % 200), "ann") for i in range(400)]))) == 0

    @pytest.mark.parametrize(("row", "other"), [(-1, 0), (-1, 87), (87, 3)])  # 87 is of the validation set
    def test_a_planted_repeat_is_found(self, tmp_path, load, row, other):
        found = load(write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(100)]))
        rows = found.dataset.to_list()
        rows[row]["text"] = rows[other]["text"].upper().replace('"', "“")
        assert leakage(replace(found, dataset=type(found.dataset).from_list(rows))) == 1

    def test_scattered_rows_make_splits_too(self, tmp_path, load):
        """Not every dataset stands in the order of its splits."""
        found = load(write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(100)]))
        mixed = replace(found, dataset=found.dataset.shuffle(seed=0))
        for split in SPLITS:
            assert sorted(mixed.texts(split)) == sorted(found.texts(split))


class TestCache:
    def test_a_second_load_does_no_work(self, tmp_path, load, monkeypatch):
        path = write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(60)])
        first = load(path)
        for name in ("build", "read_rows", "has_labels"):
            monkeypatch.setattr(corpus, name, None)
        monkeypatch.setattr(hashlib, "file_digest", None)
        second = load(path)
        assert second.dataset.to_list() == first.dataset.to_list()
        assert (second.sha256, second.counts, second.name) == (first.sha256, first.counts, path)

    def test_a_corpus_that_another_process_is_making_is_waited_for(self, tmp_path, load, monkeypatch):
        path = write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(60)])
        real = corpus.FileLock

        class Late:
            def __init__(self, file):
                monkeypatch.setattr(corpus, "FileLock", real)
                self.release = load(path).__len__  # while this one waits, the other is done
                monkeypatch.setattr(corpus, "build", None)

            def acquire(self):
                pass

        monkeypatch.setattr(corpus, "FileLock", Late)
        assert len(load(path)) == 60

    def test_it_is_mapped_not_copied(self, tmp_path, load):
        found = load(write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(60)]))
        files = [Path(file["filename"]) for file in found.dataset.cache_files]
        assert [file.name for file in files] == [f"{split}.arrow" for split in SPLITS]
        assert all(file.is_relative_to(tmp_path / "cache") for file in files)
        assert found.split("test").cache_files  # a piece of the same map

    def test_another_file_limit_or_version_is_another_corpus(self, tmp_path, load, monkeypatch):
        path = write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(60)])
        assert len(load(path)) == 60
        assert len(load(path, limit=7)) == 7
        write(tmp_path / "a.jsonl", [(story(i), "ann") for i in range(61)])
        assert len(load(path)) == 61
        monkeypatch.setattr(corpus, "VERSION", 99)
        load(path)
        assert len(list((tmp_path / "cache").glob("a.jsonl-*/corpus.json"))) == 4

    def test_a_load_that_failed_leaves_nothing_behind(self, tmp_path, load):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "One."}\n{')
        with pytest.raises(UserError, match="line 2"):
            load(path)
        assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == ["hashes"]

    def test_a_cache_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot be written .*set HF_HOME or cache"):
            load_corpus(cache=tmp_path / "file")


class TestErrors:
    def test_a_file_without_a_story(self, tmp_path, load):
        (tmp_path / "a.txt").write_text("\n<|endoftext|> \n")
        (tmp_path / "b.txt").write_text("")
        for name in ("a.txt", "b.txt"):
            with pytest.raises(UserError, match=f"{name} holds no story"):
                load(tmp_path / name)

    def test_settings(self, load):
        with pytest.raises(UserError, match="limit is 0"):
            load("sample", limit=0)
        with pytest.raises(UserError, match="no split 'tests'; did you mean 'test'"):
            load("sample").split("tests")
        with pytest.raises(UserError, match="no split 'dev'"):
            load("sample").texts("dev")


def test_instruct_labels_become_columns(tmp_path, load):
    good = "Features: Dialogue\nWords: dog, run\nStory: Story {}.\nSummary: Short {}.\n<|endoftext|>\n"
    bad = "Features: Twist\nStory: \n<|endoftext|>\nlost\n<|endoftext|>\n"
    text = "".join(good.format(i, i) for i in range(3)) + bad + good.format(3, 3)
    (tmp_path / "a.txt").write_text(text)
    found = load(tmp_path / "a.txt")
    assert found.labelled
    assert found.dataset[3] == {
        "text": "Story 3.", "source": "a", "features": ["Dialogue"], "words": ["dog", "run"], "summary": "Short 3.",
        "sentence": None, "split": "train",
    }  # fmt: skip
    assert (found.counts["read"], found.counts["skipped"], found.counts["kept"]) == (6, 2, 4)


def test_the_sample_described(load):
    found = load("sample")
    assert [len(found.split(split)) for split in SPLITS] == [357, 21, 42]
    assert not found.labelled
    table = describe(found)
    assert list(table.columns) == ["source", "split", "stories", "words", "mean words", "dialogue"]
    assert len(table) == 5 * 3
    assert table["stories"].sum() == 420
    assert table["words"].sum() == sum(len(text.split()) for split in SPLITS for text in found.texts(split))
    row = table.iloc[0]
    own = [x["text"] for x in found.split("train") if x["source"] == row["source"]]
    assert row["stories"] == len(own)
    assert row["mean words"] == pytest.approx(np.mean([len(text.split()) for text in own]))
    assert row["dialogue"] == pytest.approx(np.mean(['"' in text for text in own]), abs=0.05)


MEMORY = """
import resource, sys
from pathlib import Path
from tinystories.corpus import load_corpus

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder = Path(sys.argv[1])
for megabytes in (4, int(sys.argv[2])):
    path = folder / f"{megabytes}.txt"
    with path.open("w") as file:
        for i in range(megabytes * 1000):
            file.write(f"Story {i}. " + "The little dog ran to the big park and played. " * 21 + "\\n<|endoftext|>\\n")
    corpus = load_corpus(str(path), cache=folder / "cache")
    assert len(corpus) == megabytes * 1000
    print(peak())
"""


@pytest.mark.parametrize(("megabytes", "growth"), [(40, 25), pytest.param(2000, 200, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_corpus(tmp_path, megabytes, growth):
    """Peak of a process that loads 4 MB and then ten or 500 times as much; some 50 bytes a story are for hashes and sides."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(megabytes)], capture_output=True, text=True, check=True
    )
    small, large = map(int, done.stdout.split())
    assert large - small < growth


@pytest.mark.skipif("REVIVAL_DATA" not in os.environ, reason="needs the whole collection in REVIVAL_DATA")
def test_the_whole_collection(load):
    """Stories by source and the share of dialogue as its record has them; it was freed of repeats by the same rule."""
    path = Path(os.environ["REVIVAL_DATA"]) / "tinystories/stories.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        naive = Counter(json.loads(line)["source"].split("/")[0] for line in file)
    found = load(path)
    assert (found.counts["read"], found.counts["empty"], found.counts["repeated"], len(found)) == (19_168, 0, 0, 19_168)
    recorded = {
        "chaitanyamanem": 899, "czhou578": 2786 + 2834 + 98, "EinfachSim": 195, "JasonYao3": 5782, "mines-opt-ml": 1564, "maxme1": 2702,
        "gusjengis": 1245, "Aditya584cloud": 614, "yuninxia": 449,
    }  # fmt: skip
    by_owner = Counter()
    for source, n in found.counts["by_source"].items():
        by_owner[source.split("/")[0]] += n
    assert by_owner == recorded == naive
    table = describe(found)
    assert table["words"].sum() == 3_087_726
    assert (table["dialogue"] * table["stories"]).sum() == pytest.approx(12_447)
    assert leakage(found) == 0
