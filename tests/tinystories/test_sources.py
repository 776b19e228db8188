"""Every format gives the stories that were written; every damage is one sentence that says where."""

from __future__ import annotations

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories import sources
from tinystories.sources import END, Row, has_labels, read_rows
from workbench.errors import UserError

STORIES = ["One day, Tom said “hi”.\n\nHe left.", "A dog ran.", "", "Sue learned that 3 < 4: 🐕."]
RECORD = (
    "Features: Dialogue, Twist\nWords: dog, run\nSummary: A dog runs.\nRandom sentence: It ran.\nStory: \nIt ran.\nIt sat.\n"
)
LABELS = {"features": ["Dialogue", "Twist"], "words": ["dog", "run"], "summary": "A dog runs.", "sentence": "It ran."}


def write(path, rows=None, text=None):
    """`rows` as JSON lines or parquet, or a text as it is; packed if the name says so."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    data = text if text is not None else "".join(json.dumps(row) + "\n" for row in rows)
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def error(path, **content):
    write(path, **content)
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "A.JSONL"])
def test_tables_give_their_rows_in_order(tmp_path, name):
    rows = [{"text": text, "source": f"s{i}"} for i, text in enumerate(STORIES)]
    path = write(tmp_path / name, rows=rows)
    assert list(read_rows(path)) == [Row(text, f"s{i}") for i, text in enumerate(STORIES)]
    assert not has_labels(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_tables_carry_labels(tmp_path, name):
    bare = {"text": "b", "source": None, "features": None, "words": [], "summary": None, "sentence": None}
    path = write(tmp_path / name, rows=[{"text": "a", "source": "s", **LABELS}, bare])
    assert has_labels(path)
    assert list(read_rows(path)) == [Row("a", "s", ("Dialogue", "Twist"), ("dog", "run"), "A dog runs.", "It ran."), Row("b")]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("between", [END, f"\n{END}\n"])
def test_text_is_cut_at_the_end_marks(tmp_path, name, between):
    path = write(tmp_path / name, text="\ufeff" + between.join(STORIES) + between + "\n")
    assert [row.text.strip() for row in read_rows(path)] == STORIES  # the empty story between two marks is a row


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=9), max_size=6), st.integers(1, 20))
def test_chunks_may_cut_anywhere(tmp_path_factory, stories, chunk):
    """Marks and characters of several bytes that fall on the border of two chunks."""
    path = tmp_path_factory.getbasetemp() / "chunks.txt"
    path.write_bytes(END.join(stories).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_CHUNK", chunk)
        found = [row.text for row in read_rows(path)]
    naive = END.join(stories).removeprefix("\ufeff").split(END)
    assert found == (naive if naive[-1].strip() else naive[:-1])


@given(st.text(max_size=40), st.integers(0, 40), st.sampled_from([b"\xff", b"\xe2\x80", b"\x80"]), st.integers(1, 20))
def test_broken_utf8_is_found_at_its_byte(tmp_path_factory, text, at, bad, chunk):
    path = tmp_path_factory.getbasetemp() / "broken.txt"
    raw = text.encode(errors="ignore")
    raw = raw[:at] + bad + raw[at:]
    path.write_bytes(raw)
    try:
        raw.decode()
    except UnicodeDecodeError as naive:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "_CHUNK", chunk)
            with pytest.raises(UserError, match=f"UTF-8 at byte {naive.start} "):
                list(read_rows(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_broken_utf8_in_json_lines(tmp_path, name):
    assert "at byte 28 " in error(tmp_path / name, text=b'{"text": "whole"}\n{"text": "\xff"}\n')


def test_broken_utf8_in_parquet(tmp_path):
    binary = pa.array([b"ok", b"a\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": binary}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"not UTF-8 .*byte 1 of a text"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "line 3 is no JSON .*expecting ',' delimiter, column 13"),
        ('["a"]', "line 3 is no object"),
        ('{"story": "a", "id": 1}', "line 3 has no column 'text'; it has id, story"),
        ('{"text": 7}', "line 3: text is 7; it must be text"),
        ('{"text": "a", "source": 7}', "line 3: source is 7"),
        ('{"text": "\\udc00"}', "line 3 is no JSON .half of a surrogate"),
        ("[" * 100_000, "line 3 is no JSON .nested too deeply"),
    ],
)
def test_bad_json_lines_are_named_by_number(tmp_path, line, says):
    assert re.search(says, error(tmp_path / "a.jsonl", text='{"text": "a"}\n\n' + line + "\n"))


@pytest.mark.parametrize("value", ["Dialogue", [1], {"a": 1}])
def test_lists_must_be_lists_of_text(tmp_path, value):
    assert "features is" in error(tmp_path / "a.jsonl", rows=[{"text": "a", "features": value}])


def test_labels_that_come_late_are_not_lost_silently(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_PEEK", 2)
    rows = [{"text": "a"}] * 2 + [{"text": "b", **LABELS}]
    assert "line 3 has labels" in error(tmp_path / "a.jsonl", rows=rows)


def test_a_byte_order_mark_is_no_json_error(tmp_path):
    assert list(read_rows(write(tmp_path / "a.jsonl", text='\ufeff{"text": "a"}\n'))) == [Row("a")]


def test_a_table_must_have_texts(tmp_path):
    assert "has no column 'text'; it has id, story" in error(tmp_path / "a.parquet", rows=[{"story": "a", "id": 1}])
    assert "'text' of type int64" in error(tmp_path / "b.parquet", rows=[{"text": 1}])


def test_files_of_other_kinds_and_damaged_ones(tmp_path):
    assert "ends in .parquet, .jsonl, .jsonl.gz, .txt, .txt.gz" in error(tmp_path / "a.csv", text="text\na\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no whole parquet file"):
        list(read_rows(tmp_path / "a.parquet"))
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    for raw in (whole[:-9], b"no gzip", whole[:20] + b"\0\0\0" + whole[23:]):
        (tmp_path / "a.jsonl.gz").write_bytes(raw)
        with pytest.raises(UserError, match="damaged or cut gzip"):
            list(read_rows(tmp_path / "a.jsonl.gz"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(read_rows(tmp_path / "none.txt"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_too_long_for_a_story_does_not_fill_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "LONGEST", 1000)
    assert "more than 1,000 characters" in error(tmp_path / name, text="a " * 300_000)


class TestInstruct:
    """Text of the instruct set, as a file, or as a table of its lines or of its records."""

    ROWS = [Row("It ran.\nIt sat.", None, ("Dialogue", "Twist"), ("dog", "run"), "A dog runs.", "It ran.")] * 2
    AFTER = "Features: Dialogue, Twist\nWords: dog, run\nSentence: It ran.\nStory: It ran.\nIt sat.\nSummary: A dog runs.\n"

    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_text(self, tmp_path, newline):
        """A summary may follow its story."""
        path = write(tmp_path / "a.txt", text=f"{RECORD}{END}\n{self.AFTER}{END}\n".replace("\n", newline))
        assert has_labels(path)
        assert list(read_rows(path)) == self.ROWS

    def test_a_table_of_lines(self, tmp_path):
        lines = f"{RECORD}{END}\n{self.AFTER}{END}".split("\n")
        path = write(tmp_path / "a.parquet", rows=[{"text": line} for line in lines])
        assert has_labels(path)
        assert list(read_rows(path)) == self.ROWS

    def test_a_table_of_records(self, tmp_path):
        path = write(tmp_path / "a.parquet", rows=[{"text": RECORD}, {"text": self.AFTER}])
        assert list(read_rows(path)) == self.ROWS


def test_a_table_of_plain_lines(tmp_path):
    path = write(tmp_path / "a.parquet", rows=[{"text": line} for line in ("One.", "Two.", END, "", "Three.")])
    assert [row.text.strip() for row in read_rows(path)] == ["One.\nTwo.", "Three."]
    assert not has_labels(path)


def test_a_story_may_speak_of_a_story(tmp_path):
    text = f"Story: a dog.\nWords are fun.{END}Another."
    assert [row.text for row in read_rows(write(tmp_path / "a.txt", text=text))] == [
        "Story: a dog.\nWords are fun.",
        "Another.",
    ]
