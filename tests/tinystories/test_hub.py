"""Data sets of the hub: a filled cache is enough, the network is never needed for what is there, and refusals are sentences."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinystories import hub
from tinystories.corpus import load_corpus
from workbench.errors import UserError

COMMIT = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
CONFIGS = """---
license: cdla-sharing-1.0
configs:
- config_name: small
  data_files: nowhere/*.parquet
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: [data/validation-*]
---
# Stories
"""


def lay_out(folder, readme=CONFIGS, train=60):
    """A repository as the hub has it: two training shards, a validation file with three of their stories, and a stray text file."""
    (folder / "data").mkdir(parents=True)
    stories = [f"Story number {i} of a dog." for i in range(train + 20)]
    half = train // 2
    for name, some in {
        "train-00000-of-00002-2d5a1467fff1081b": stories[:half],
        "train-00001-of-00002-5852b56a2bd28fd9": stories[half:train],
        "validation-00000-of-00001-869c898b519ad725": stories[train - 3 :],
    }.items():
        pq.write_table(pa.table({"text": some}), folder / "data" / f"{name}.parquet")
    (folder / "TinyStoriesV2-GPT4-train.txt").write_text("Not to be read, as data/ has the stories.")
    if readme is not None:
        (folder / "README.md").write_text(readme)
    return stories


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty home of Hugging Face, offline, where every connection fails the test."""

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


def fill(home, name="roneneldan/TinyStories", **layout):
    """Put a data set into the hub's cache as a download leaves it."""
    repository = home / "hub" / f"datasets--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return lay_out(repository / "snapshots" / COMMIT, **layout)


@pytest.mark.parametrize("readme", [CONFIGS, "---\nlanguage: en\n---\n", None])
def test_a_folder_laid_out_as_the_hubs(tmp_path, readme):
    """The same with and without configured files; validation stories are counted, not used."""
    stories = lay_out(tmp_path / "set", readme=readme)
    corpus = load_corpus(str(tmp_path / "set"), cache=tmp_path / "cache")
    texts = [text for split in ("train", "validation", "test") for text in corpus.texts(split)]
    assert sorted(texts) == sorted(stories[:60])
    assert (corpus.counts["held_out"], corpus.counts["leaked"]) == (23, 3)
    assert corpus.counts["by_source"] == {"data/train": 60}  # shards are no sources
    assert corpus.revision is None


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_filled_cache_works_offline_and_says_its_commit(hub_cache, revision):
    fill(hub_cache)
    corpus = load_corpus("roneneldan/TinyStories", revision=revision)
    assert corpus.revision == COMMIT
    assert len(corpus) == 60
    assert corpus.counts["by_source"] == {"roneneldan/TinyStories": 60}
    assert corpus.counts["leaked"] == 3
    assert list((hub_cache / "revival").glob("roneneldan--TinyStories-*/train.arrow"))


def test_the_corpus_outlives_the_hubs_cache(hub_cache):
    fill(hub_cache)
    before = load_corpus("roneneldan/TinyStories")
    (hub_cache / "hub").rename(hub_cache / "gone")
    assert load_corpus("roneneldan/TinyStories").sha256 == before.sha256
    assert load_corpus("roneneldan/TinyStories", revision=COMMIT).sha256 == before.sha256
    with pytest.raises(UserError, match="not loaded"):
        load_corpus("roneneldan/TinyStories", revision="v2")


def test_the_sample_and_local_files_touch_no_network(hub_cache, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    lay_out(tmp_path / "set")
    assert len(load_corpus()) == 420
    assert len(load_corpus(str(tmp_path / "set"))) == 60


def test_offline_without_the_data_set(hub_cache):
    with pytest.raises(
        UserError, match=r"'some/set' was not loaded because HF_HUB_OFFLINE.*HF_HUB_OFFLINE=1.*local folder.*'sample'"
    ):
        load_corpus("some/set")


def test_a_hub_that_cannot_be_reached(hub_cache, monkeypatch):
    def unreachable(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(UserError, match="at revision 'v1' was not loaded because the hub cannot be reached"):
        load_corpus("some/set", revision="v1")
    fill(hub_cache)
    assert load_corpus("roneneldan/TinyStories").revision == COMMIT  # what is cached is used


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RepositoryNotFoundError", "no data set 'some/set'"),
        ("GatedRepoError", "gated"),
        ("RevisionNotFoundError", "no revision 'v1'"),
    ],
)
def test_refusals_of_the_hub_are_told_apart(monkeypatch, name, says):
    import huggingface_hub

    kind = getattr(huggingface_hub.errors, name)

    def refuse(*_, **__):
        raise kind.__new__(kind)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match=says) as caught:
        load_corpus("some/set", revision="v1")
    assert not isinstance(caught.value, hub.Unreachable)


def test_the_hub_is_asked_once_and_gives_only_what_is_named(hub_cache, monkeypatch):
    """An online load, with the two calls of the library replaced: the commit, then the README, then the files it names."""
    import huggingface_hub

    asked = []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    lay_out(hub_cache / COMMIT)

    def download(name, *, revision, allow_patterns, local_files_only, **_):
        asked.append((name, revision, allow_patterns, local_files_only))
        return str(hub_cache / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for revision in (None, "main", COMMIT):
        assert load_corpus("some/set", revision=revision).revision == COMMIT
    assert asked == [
        ("some/set", COMMIT, ["README.md"], False),
        ("some/set", COMMIT, ["data/train-*", "data/validation-*"], False),
    ]


def test_names_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tinystories", "a/b/c", "./a", "missing/stories.txt", "a b/c"):
        with pytest.raises(UserError, match=r"no file or folder .*owner/name"):
            load_corpus(name)
    with pytest.raises(UserError, match="no name of a hub data set"):
        load_corpus("-a/b--c")


def test_local_files_have_no_revision(tmp_path):
    with pytest.raises(UserError, match="revision 'v1' was given with 'sample'"):
        load_corpus(revision="v1", cache=tmp_path)


class TestFiles:
    """Which files of a folder are read."""

    @pytest.fixture
    def touch(self, tmp_path):
        def make(*names):
            for name in names:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
            stories, held_out = hub.files_of(tmp_path)
            return [path.relative_to(tmp_path).as_posix() for path in stories], [path.name for path in held_out]

        return make

    def test_in_the_order_of_their_names(self, touch):
        assert touch("b.txt", "a.jsonl", "notes.md", ".hidden.txt", "deep/c.txt") == (["a.jsonl", "b.txt"], [])

    def test_below_where_there_are_none_above(self, touch):
        assert touch("x/b.txt", "y/z/a.parquet", "README.md") == (["x/b.txt", "y/z/a.parquet"], [])

    def test_held_out_by_name(self, touch):
        assert touch("V2-train.txt", "V2-valid.txt", "dev-of-train.txt", "test_a.txt", "latest.txt") == (
            ["V2-train.txt", "dev-of-train.txt", "latest.txt"],
            ["V2-valid.txt", "test_a.txt"],
        )

    def test_held_out_files_alone_are_a_corpus(self, touch):
        assert touch("valid.txt") == (["valid.txt"], [])

    def test_all_parts_must_be_there(self, touch):
        with pytest.raises(UserError, match=r"lacks part 1 of the 3 of 'data/train'"):
            touch(
                "data/train-00000-of-00003.parquet",
                "data/train-00002-of-00003-0a1b.parquet",
                "data/test-00000-of-00001.parquet",
            )

    def test_nothing_to_read(self, touch):
        with pytest.raises(UserError, match=r"ends in .parquet.*it holds a.csv, b.md"):
            touch("a.csv", "b.md")

    @pytest.mark.parametrize("path", ["../secret.txt", "/etc/*.txt"])
    def test_files_outside_are_refused(self, tmp_path, touch, path):
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n")
        with pytest.raises(UserError, match="outside its folder"):
            touch("a.txt")

    @pytest.mark.parametrize("mark", ["config_name: default", "default: true"])
    def test_the_default_configuration(self, tmp_path, touch, mark):
        other = "config_name: other\n  data_files: a.txt"
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n- {other}\n- {mark}\n  data_files: [b.txt, c.*]\n---\n")
        assert touch("a.txt", "b.txt", "c.jsonl", "data/d.txt") == (["b.txt", "c.jsonl"], [])

    def test_a_header_that_is_no_yaml(self, tmp_path, touch):
        (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
        with pytest.raises(UserError, match="no YAML"):
            touch("a.txt")


def test_the_environment_alone_is_enough(tmp_path):
    """In a fresh process, as a user would: both variables set before anything is imported."""
    fill(tmp_path)
    code = "from tinystories.corpus import load_corpus; print(len(load_corpus('roneneldan/TinyStories')))"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "60"
    assert (tmp_path / "revival").is_dir()
