"""A store gives back the ids of every story, is made once, and never stays damaged."""

from __future__ import annotations

import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tinystories.store
from tinystories.store import TokenStore, tokenise
from tinystories.tokenizer import train_bpe
from workbench.errors import UserError


def untouchable():
    """Stories that must not be read."""
    raise AssertionError("the corpus was read again")
    yield ""


@pytest.fixture
def folder(tmp_path, made_up, own_tokenizer, monkeypatch):
    """A store of the made-up stories, written in several chunks."""
    monkeypatch.setattr(tinystories.store, "CHUNK_STORIES", 64)
    tokenise(iter(made_up), own_tokenizer, tmp_path / "store", "corpus")
    return tmp_path / "store"


def test_every_story_is_what_the_tokenizer_gives(folder, made_up, own_tokenizer):
    store = TokenStore.open(folder)
    assert len(store) == len(made_up)
    expected = [own_tokenizer.encode(text) for text in made_up]
    assert [story.tolist() for story in store.stories(range(len(store)))] == expected
    assert store.story(7).tolist() == expected[7]
    assert store.n_tokens == sum(map(len, expected))
    assert store.lengths.tolist() == list(map(len, expected))
    assert store.tokens.dtype == np.uint16
    assert store.damage() is None
    for i in (-1, len(store)):
        with pytest.raises(IndexError, match=f"story {i} of a store of 300"):
            store.story(i)


def test_files_are_plain_numpy_and_json(folder, own_tokenizer):
    assert sorted(p.name for p in folder.iterdir()) == ["offsets.npy", "store.json", "tokens.npy"]
    tokens, offsets = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("tokens", "offsets"))
    about = json.loads((folder / "store.json").read_text())
    assert (about["tokens"], about["stories"]) == (len(tokens), len(offsets) - 1)
    assert about["dtype"] == tokens.dtype.str == "<u2"
    assert offsets.dtype == np.int64
    assert (about["tokenizer_sha256"], about["corpus_sha256"]) == (own_tokenizer.sha256, "corpus")


def test_tokens_are_not_held_in_memory_and_cannot_be_changed(folder):
    store = TokenStore.open(folder)
    assert isinstance(store.tokens.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.story(0)[0] = 1


def test_the_same_corpus_and_tokenizer_are_tokenised_once(folder, own_tokenizer):
    before = (folder / "tokens.npy").stat()
    store = tokenise(untouchable(), own_tokenizer, folder, "corpus")
    assert (folder / "tokens.npy").stat() == before
    assert len(store) == 300


def test_another_corpus_or_tokenizer_replaces_the_store(folder, made_up, own_tokenizer, tmp_path):
    assert len(tokenise(made_up[:9], own_tokenizer, folder, "another")) == 9
    other = train_bpe(made_up, 520, tmp_path / "other")
    store = tokenise(made_up[:9], other, folder, "another")
    assert store.story(3).tolist() == other.encode(made_up[3])
    assert store.tokenizer_sha256 == other.sha256


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "no about": lambda f: (f / "store.json").unlink(),
    "about cut short": lambda f: (f / "store.json").write_text('{"format": 1,'),
    "about is a list": lambda f: (f / "store.json").write_text("[]"),
    "no tokens": lambda f: (f / "tokens.npy").unlink(),
    "tokens cut short": lambda f: (f / "tokens.npy").write_bytes((f / "tokens.npy").read_bytes()[:-2]),
    "tokens too long": lambda f: (f / "tokens.npy").write_bytes((f / "tokens.npy").read_bytes() + b"\0\0"),
    "tokens empty": lambda f: (f / "tokens.npy").write_bytes(b""),
    "a pickle": lambda f: np.save(f / "offsets.npy", np.array([{}], object), allow_pickle=True),
    "offsets flipped": lambda f: flip(f / "offsets.npy", 128 + 8 * 5),
    "offsets not rising": lambda f: flip(f / "offsets.npy", 128 + 8 * 5 + 6),
    "first offset": lambda f: flip(f / "offsets.npy", 128),
    "a token flipped": lambda f: flip(f / "tokens.npy", -2),
    "older format": lambda f: (f / "store.json").write_text(
        (f / "store.json").read_text().replace('"format": 1', '"format": 0')
    ),
}
ONLY_BY_CHECKSUM = {"a token flipped", "offsets flipped"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_store_is_remade(folder, made_up, own_tokenizer, kind):
    expected = TokenStore.open(folder).tokens.copy()
    DAMAGE[kind](folder)
    if kind in ONLY_BY_CHECKSUM:
        assert "checksum" in TokenStore.open(folder).damage()
    else:
        with pytest.raises(UserError, match=r"token store in .*(damaged|format 0)|there is no token store"):
            TokenStore.open(folder)
    store = tokenise(made_up, own_tokenizer, folder, "corpus")
    assert np.array_equal(store.tokens, expected)
    assert store.damage() is None


def test_a_store_that_was_cut_short_leaves_nothing_behind(folder, made_up, own_tokenizer):
    def corpus():
        yield from made_up[:100]
        raise UserError("the corpus ends in broken UTF-8")

    with pytest.raises(UserError, match="broken UTF-8"):
        tokenise(corpus(), own_tokenizer, folder.parent / "new", "corpus")
    with pytest.raises(UserError, match="broken UTF-8"):
        tokenise(corpus(), own_tokenizer, folder, "another")
    assert TokenStore.open(folder).corpus_sha256 == "corpus"
    assert sorted(
        p.name for p in folder.parent.iterdir() if not p.name.startswith(".new") and not p.name.startswith(".store")
    ) == ["store"]


@pytest.mark.parametrize(
    ("texts", "message"), [(["a", "", "b"], r"story 1 \(counted from 0\) is empty"), ([], "there are no stories to tokenise")]
)
def test_an_empty_story_or_corpus_is_refused(own_tokenizer, tmp_path, texts, message):
    with pytest.raises(UserError, match=message):
        tokenise(texts, own_tokenizer, tmp_path / "s", "c")
    assert not (tmp_path / "s").exists()


def test_an_empty_story_is_numbered_in_the_whole_corpus(own_tokenizer, tmp_path, made_up, monkeypatch):
    monkeypatch.setattr(tinystories.store, "CHUNK_STORIES", 8)
    with pytest.raises(UserError, match=r"story 20 \(counted from 0\)"):
        tokenise([*made_up[:20], "", *made_up[20:]], own_tokenizer, tmp_path / "s", "c")


def test_a_folder_with_other_files_is_never_replaced(own_tokenizer, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files, such as thesis\.tex"):
        tokenise(["a"], own_tokenizer, tmp_path / "s", "c")
    with pytest.raises(UserError, match="is a file"):
        tokenise(["a"], own_tokenizer, tmp_path / "s" / "thesis.tex", "c")
    assert (tmp_path / "s" / "thesis.tex").read_text() == "precious"


def test_two_who_want_the_same_store_make_it_once(own_tokenizer, made_up, tmp_path):
    reads = []

    def corpus():
        reads.append(1)
        for text in made_up:
            time.sleep(0.0005)
            yield text

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(tokenise, corpus(), own_tokenizer, tmp_path / "s", "c") for _ in range(4)]
        assert [len(one.result()) for one in asked] == [len(made_up)] * 4
    assert len(reads) == 1


def test_memory_does_not_grow_with_the_corpus(own_tokenizer, made_up, tmp_path, monkeypatch):
    """Ten times the stories, the same peak; the text alone would add 1.6 MB, the tokens as much."""
    monkeypatch.setattr(tinystories.store, "CHUNK_STORIES", 128)
    own_tokenizer.encode_many(made_up)
    peaks = []
    for times in (2, 20):
        tracemalloc.start()
        store = tokenise((text + "!" for _ in range(times) for text in made_up), own_tokenizer, tmp_path / str(times), "c")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(store) == times * len(made_up)
    assert peaks[1] < peaks[0] + 300_000
