"""Tokenizers give the library's ids, every text back, and ids for beginning, end and padding that no text has."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tinystories.wordwise
from tinystories.tokenizer import StoryTokenizer, check_fits, load_tokenizer, train_bpe
from tinystories.wordwise import ALPHABET, wordwise
from workbench.errors import UserError

INK = st.sampled_from(
    [*" \n\t'\"“”’sdtmrevl aZ09.,!-_é²Ⅷª\x1c\x85\xa0…€", "<|eos|>", "<|bos|>", " the", "don't", "'LL", "🙂", "字", "e\u0301"]
)
TEXTS = st.one_of(st.lists(INK, max_size=30).map("".join), st.text(max_size=40))


def library_ids(tokenizer: StoryTokenizer, text: str) -> list[int]:
    return tokenizer._backend.encode(text, add_special_tokens=False).ids


def stories_of(folder: Path, n: int) -> list[str]:
    with gzip.open(folder / "tinystories" / "stories.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return random.Random(0).sample(texts, n)


# Our own


@given(TEXTS)
def test_every_text_comes_back_unchanged(own_tokenizer, text):
    assert own_tokenizer.decode(own_tokenizer.encode(text)) == text


@given(TEXTS)
def test_going_word_by_word_gives_the_ids_of_the_library(own_tokenizer, text):
    assert own_tokenizer.encode(text) == library_ids(own_tokenizer, text)


def test_words_are_cut_as_the_library_cuts_them_around_every_character_of_the_alphabet():
    """Letter, number, space or other: each character before, behind and between such as would join it or not."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    contexts = "a{0}{0}b 1{0}2 .{0}. {0} {0}\n{0}x  {0}'{0}s '{0}"
    wrong = []
    for c in sorted(ALPHABET):
        text = contexts.format(c)
        if tinystories.wordwise._WORDS.findall(text) != [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)]:
            wrong.append(c)
    assert wrong == []


def test_a_text_outside_the_alphabet_is_left_to_the_library(own_tokenizer):
    fast = own_tokenizer._wordwise
    assert fast.encode("“plain” story…") is not None
    assert fast.encode("a smile 🙂") is None
    assert own_tokenizer.encode_many(["a", "🙂", "b"])[1].tolist() == library_ids(own_tokenizer, "🙂")


def test_the_memory_of_words_is_bounded(own_tokenizer, monkeypatch):
    monkeypatch.setattr(tinystories.wordwise, "MOST_WORDS", 3)
    fast = wordwise(own_tokenizer._backend, own_tokenizer.dtype)
    text = "one two three four five six " + "z" * 100
    for _ in range(2):
        assert fast.encode(text).tolist() == library_ids(own_tokenizer, text)
    memory = fast._ids_of.__self__
    assert len(memory) == 3
    monkeypatch.setattr(tinystories.wordwise, "MOST_WORDS", 100)
    fast.encode(text)
    assert max(map(len, memory)) < 100


@pytest.mark.parametrize("limit", [None, 50])
def test_two_trainings_give_the_same_bytes(made_up, tmp_path, limit):
    for name in "ab":
        train_bpe(iter(made_up), 520, tmp_path / name, seed=3, limit=limit)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_seed_draws_the_texts_of_a_limited_training(made_up, tmp_path):
    hashes = [train_bpe(made_up, 520, tmp_path / str(seed), seed=seed, limit=50).sha256 for seed in (0, 1)]
    assert len({*hashes, train_bpe(made_up[:50], 520, tmp_path / "first").sha256}) == 3


def test_a_limited_training_draws_every_text_equally_often():
    """Each of 20 texts has probability 1/4 in a draw of 5; 4.4 standard deviations over 2,000 draws are .043."""
    texts = [str(i) for i in range(20)]
    drawn = [tinystories.tokenizer._sample(iter(texts), 5, seed) for seed in range(2000)]
    assert all(len(set(d)) == 5 for d in drawn)
    share = np.array([sum(text in d for d in drawn) for text in texts]) / len(drawn)
    assert abs(share - 0.25).max() < 0.043


def test_the_folder_opens_with_the_auto_class_of_transformers(own_tokenizer, made_up):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(own_tokenizer.source)
    assert theirs(made_up[0])["input_ids"] == own_tokenizer.encode(made_up[0])
    assert [theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == [0, 1, 2]
    assert [own_tokenizer.bos_id, own_tokenizer.eos_id, own_tokenizer.pad_id] == [0, 1, 2]
    assert len(theirs) == own_tokenizer.vocab_size == 600
    assert theirs.decode(own_tokenizer.encode(" a , b .")) == " a , b ."


def test_special_tokens_in_a_story_are_plain_text(own_tokenizer):
    text = "The end.<|eos|><|bos|> <|pad|>"
    ids = own_tokenizer.encode(text)
    assert not {0, 1, 2}.intersection(ids)
    assert own_tokenizer.decode(ids) == text
    assert own_tokenizer.decode([0, *ids, 1, 2, 2]) == text


def test_tokens_have_texts_that_make_up_the_whole(own_tokenizer, made_up):
    ids = own_tokenizer.encode(made_up[0])
    assert "".join(map(own_tokenizer.token_text, ids)) == made_up[0]
    assert own_tokenizer.token_text(1) == "<|eos|>"
    assert own_tokenizer.token_text(own_tokenizer.encode("é")[0]) in ("é", "\ufffd")


@given(TEXTS)
def test_offsets_cover_a_text_in_order_token_by_token(own_tokenizer, text):
    spans, ids = own_tokenizer.offsets(text), own_tokenizer.encode(text)
    assert len(spans) == len(ids)
    assert {i for a, b in spans for i in range(a, b)} == set(range(len(text)))
    assert all(p <= q for p, q in pairwise(spans))
    for token, (a, b) in zip(ids, spans, strict=True):
        if "\ufffd" not in own_tokenizer.token_text(token):
            assert own_tokenizer.token_text(token) == text[a:b]


def test_ids_are_small_and_cannot_be_written_to(own_tokenizer):
    for ids in own_tokenizer.encode_many(["a story", "🙂", ""]):
        assert ids.dtype == np.uint16
        assert not ids.flags.writeable


# Any


def byte_level(folder: Path, prefix_space: bool, use_regex: bool = True, extra: str = "") -> StoryTokenizer:
    """A tokenizer of Hugging Face's making with merges of its own, opened from its folder."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("s", "t"), ("Ġ", "Ġ"), ("'", "s")]
    tokens = ["<|endoftext|>", *letters, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    if extra:
        made.add_tokens([extra])
    made.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, StoryTokenizer]:
    folder = tmp_path_factory.mktemp("variants")
    return {
        "plain": byte_level(folder / "plain", False),
        "prefix": byte_level(folder / "prefix", True),
        "no regex": byte_level(folder / "regex", False, use_regex=False),
        "added": byte_level(folder / "added", False, extra="the end"),
    }


@settings(max_examples=60)
@given(TEXTS)
def test_every_byte_level_tokenizer_gives_the_ids_of_the_library(variants, text):
    for tokenizer in variants.values():
        assert tokenizer.encode(text) == library_ids(tokenizer, text)
        assert len(tokenizer.offsets(text)) == len(tokenizer.encode(text))


def test_only_what_goes_word_by_word_exactly_does_so(variants):
    """Without the regular expression merges cross words, and an added token may hold several."""
    assert {name for name, tokenizer in variants.items() if tokenizer._wordwise is not None} == {"plain", "prefix"}
    assert len(variants["added"].encode("the end")) == 1


@settings(max_examples=60)
@given(TEXTS)
def test_padding_without_a_token_of_its_own_is_one_that_no_text_has(variants, text):
    tokenizer = variants["plain"]
    assert tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.pad_id not in {0, *tokenizer.encode(text)}


def test_hashes_differ_where_ids_do(variants, own_tokenizer):
    assert len({tokenizer.sha256 for tokenizer in (*variants.values(), own_tokenizer)}) == 5
    assert load_tokenizer(own_tokenizer.source).sha256 == own_tokenizer.sha256


def words(folder: Path, **names: str) -> Path:
    """A tokenizer of whole words, in which a special token can be written as a word."""
    folder.mkdir()
    tokens = ["<unk>", "<s>", "</s>", "a", "cat"]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(tokens[:3])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **names})
    )
    return folder


def test_a_story_that_holds_a_special_token_as_a_word_is_refused(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path / "w", bos_token="<s>", eos_token="</s>"), eos="<s>")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 1, 2)
    assert tokenizer.encode("a cat") == [3, 4]
    with pytest.raises(UserError, match=r"begins 'a </s> cat' holds '</s>'.*reads as a special token"):
        tokenizer.encode("a </s> cat")


def test_one_end_serves_as_the_other_and_padding_is_never_an_end(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path / "w", eos_token="</s>", pad_token="</s>"))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 2, 1)


# Bad input


@pytest.mark.parametrize(
    ("names", "eos", "message"),
    [
        ({}, None, r"names no token that begins or ends a text; name one with eos="),
        ({"bos_token": "<s>", "eos_token": "</s>"}, None, r"no token that is free for padding"),
        ({"bos_token": "<s>"}, "</S>", r"eos is '</S>', which is no token of .*; did you mean '</s>'"),
    ],
)
def test_a_tokenizer_without_the_tokens_of_a_story_is_refused(tmp_path, names, eos, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(words(tmp_path / "w", **names), eos)


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "f", r"holds no tokenizer; it needs tokenizer.json"),
        ({"tokenizer.json": "{"}, "f", r"cannot be opened \(.*\); save it again"),
        ({}, "missing", r"there is no tokenizer folder '.*missing'"),
    ],
)
def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path, files, name, message):
    (tmp_path / "f").mkdir()
    for file, text in files.items():
        (tmp_path / "f" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path / name)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    from transformers import AutoTokenizer

    def unreachable(name, trust_remote_code):
        assert trust_remote_code is False
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand a long explanation")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(
        UserError, match=r"'org/name' is no folder here and .*hub \(We couldn't connect to '[^\n]*'\); give the folder"
    ):
        load_tokenizer("org/name")


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    folder = words(tmp_path / "w", bos_token="<s>")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be opened"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_half_a_surrogate_pair_is_refused(own_tokenizer):
    for ask in (own_tokenizer.encode, own_tokenizer.offsets):
        with pytest.raises(UserError, match=r"holds '\\ud83d' at character 3, half a surrogate pair"):
            ask("ab \ud83d")


@pytest.mark.parametrize("wrong", [-1, 600])
def test_an_id_of_another_tokenizer_is_refused(own_tokenizer, wrong):
    for ask in (lambda i: own_tokenizer.decode([5, i]), own_tokenizer.token_text):
        with pytest.raises(UserError, match=rf"id {wrong} is not one of the tokenizer .* \(0 to 599\)"):
            ask(wrong)


@pytest.mark.parametrize(
    ("size", "limit", "message"),
    [
        (511, None, "vocab_size is 511; a vocabulary of stories has 512 to 8192 tokens"),
        (8193, None, "vocab_size is 8193"),
        (600, 0, "limit is 0"),
        (8192, None, r"the texts give \d+ tokens .* fewer than vocab_size 8192"),
    ],
)
def test_a_vocabulary_that_cannot_be_trained_is_refused_and_writes_nothing(made_up, tmp_path, size, limit, message):
    with pytest.raises(UserError, match=message):
        train_bpe(made_up[:20], size, tmp_path / "t", limit=limit)
    assert not (tmp_path / "t").exists()


def test_a_tokenizer_fits_its_model_and_a_padded_table_only(own_tokenizer):
    for rows in (600, 640):
        check_fits(own_tokenizer, rows)
    for rows in (599, 641, 50257):
        with pytest.raises(UserError, match=rf"has ids up to 599, the model has {rows} rows"):
            check_fits(own_tokenizer, rows)


# Real data


def test_gpt2_tokenizer(real_data, tmp_path):
    """Ids from the folder's README; 1,000 real stories as the library has them."""
    tokenizer = load_tokenizer(real_data / "gpt2_tokenizer")
    assert tokenizer.encode("Once upon a time") == [7454, 2402, 257, 640]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (50257, 50256, 50256)
    assert tokenizer.dtype == np.uint16
    texts = stories_of(real_data, 1000)
    encoded = tokenizer.encode_many(texts)
    assert [ids.tolist() for ids in encoded] == [library_ids(tokenizer, text) for text in texts]
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(real_data / "gpt2_tokenizer" / name, tmp_path)
    assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


def test_the_tokenizer_of_stories260k(real_data):
    """Ends with `<s>`; tokens of quotation marks from its README."""
    tokenizer = load_tokenizer(real_data / "stories260K" / "hf")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (512, 1, 1, 2)
    assert [tokenizer.token_text(i) for i in (313, 436, 465, 13, 1)] == [' "', '"', "“", "\n", "<s>"]
    texts = [*stories_of(real_data, 200), "A <s> in a story</s>"]
    encoded = tokenizer.encode_many(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert not any({1, 2}.intersection(ids.tolist()) for ids in encoded)


def test_own_tokenizer_on_real_stories(real_data, tmp_path):
    texts = stories_of(real_data, 2000)
    tokenizer = train_bpe(texts, 2048, tmp_path / "t")
    encoded = tokenizer.encode_many(texts)
    assert [ids.tolist() for ids in encoded] == [library_ids(tokenizer, text) for text in texts]
    assert all(tokenizer._wordwise.encode(text) is not None for text in texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
