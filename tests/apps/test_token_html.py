from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.dashboard.token_html import BREAK, DEEPEST, END, Piece, color, legend, pieces, spans, top
from workbench.figures.theme import page_templates


def by_bytes(ids):
    """A byte-level tokenizer in one line; ids from 256 on have no characters, as special tokens do."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def cut(ids, prompt=1, nats=None, kl=None):
    rest = len(ids) - 1
    return pieces(ids, by_bytes, nats or [1.0] * rest, kl or [0.5] * rest, prompt)


class Shown(HTMLParser):
    """What a browser would make of it: elements, attributes, text without decoration."""

    def __init__(self, text):
        super().__init__()
        self.names, self.titles, self.text, self.styles, self.hidden = [], [], "", [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names.append((tag, frozenset(found)))
        self.hidden += "user-select:none" in found.get("style", "") or (self.hidden > 0)
        if "title" in found:
            self.titles.append(found["title"])
            self.styles.append(found["style"])

    def handle_endtag(self, tag):
        self.hidden -= self.hidden > 0

    def handle_data(self, data):
        self.text += data * (not self.hidden)


def one(text="a", surprisal=1.0, kl=0.5, prompt=False, ids=(7,)):
    return Piece(text, ids, surprisal, kl, prompt)


@given(text=st.text(max_size=12), end=st.booleans())
def test_pieces_are_the_text_and_break_no_character(text, end):
    ids = [256, *text.encode(errors="ignore"), *[257] * end]
    found = cut(ids)
    assert "".join(p.text for p in found) == by_bytes(ids)
    assert [i for p in found for i in p.ids] == ids
    assert all(len(p.text) <= 1 for p in found)
    assert not any("�" in p.text for p in found if "�" not in text)


@given(st.lists(st.integers(0, 257), min_size=1, max_size=12))
def test_bytes_that_are_no_text_lose_nothing(ids):
    found = cut(ids)
    assert "".join(p.text for p in found) == by_bytes(ids)
    assert [i for p in found for i in p.ids] == ids


def test_numbers_belong_to_the_token_that_they_are_about_and_add_up_over_a_character():
    ids = [256, *"aé".encode(), 257]
    found = cut(ids, prompt=2, nats=[1.0, 2.0, 4.0, 8.0], kl=[0.1, 0.2, 0.4, 0.8])
    assert [p.text for p in found] == ["", "a", "é", ""]
    assert [p.surprisal for p in found[1:]] == [1.0, 6.0, 8.0]
    assert [p.kl for p in found[1:]] == pytest.approx([0.1, 0.6, 0.8])
    assert math.isnan(found[0].surprisal)
    assert [p.prompt for p in found] == [True, True, False, False]


def test_a_tokenizer_that_drops_the_first_space_is_not_decoded_token_by_token():
    words = {1: " Tom", 2: " ran", 3: "."}

    def describe(ids):
        return "".join(words.get(i, "") for i in ids).removeprefix(" ")

    assert [p.text for p in pieces([0, 1, 2, 3], describe, [1.0] * 3, [0.0] * 3, 1)] == ["", "Tom", " ran", "."]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "&lt;b&gt;", "</div>"])
def test_whatever_a_model_writes_stays_text(text):
    shown = Shown(spans([one(text)], "surprisal", 2.0))
    assert shown.text == text
    assert shown.names == [("div", frozenset({"style"})), ("span", frozenset({"title", "style"}))]
    assert shown.titles[0].startswith(f"“{text}” (token 7)")


def test_white_space_and_line_breaks_are_kept_and_marked():
    source = spans([one("  a\n\n"), one("b")], "none", 1.0)
    assert "white-space:pre-wrap" in source
    assert Shown(source).text == "  a\n\nb"
    assert source.count(f">{BREAK}</span>\n") == 2


def test_what_one_sees_on_hover():
    (title,) = Shown(spans([one(" cat\n", 2.345, 0.0123, ids=(7, 8))], "kl", 1.0)).titles
    assert title == f"“ cat{BREAK}” (tokens 7, 8)\nsurprisal 2.35 nats\nKL from the base 0.012 nats"


def test_the_end_is_shown_and_the_beginning_is_not():
    shown = spans([one("", math.nan, math.nan, True), one("a", prompt=True), one("")], "surprisal", 1.0)
    assert shown.count(END) == 1
    assert len(Shown(shown).titles) == 2
    assert "the text ends here" in Shown(shown).titles[1]


def test_the_prompt_can_be_told_from_what_was_written():
    styles = Shown(spans([one(prompt=True), one(), one(prompt=True)], "none", 1.0)).styles
    assert ["dotted" in style for style in styles] == [True, False, True]
    assert not any("background" in style for style in styles)


@pytest.mark.parametrize(("by", "value"), [("surprisal", 1.0), ("kl", 0.5)])
def test_the_colour_is_of_the_number_that_was_asked_for(by, value):
    (style,) = Shown(spans([one()], by, 2.0)).styles
    assert f"background-color:{color(value, 2.0)}" in style


def alpha(text):
    return float(re.fullmatch(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", text)[1])


def test_colours_deepen_evenly_up_to_the_end_of_the_scale():
    assert [alpha(color(v, 4.0)) for v in (0, 1, 2, 4, 9, -1, math.nan)] == pytest.approx(
        [0, DEEPEST / 4, DEEPEST / 2, DEEPEST, DEEPEST, 0, 0]
    )


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize(("scheme", "page"), [("light", (255, 255, 255)), ("dark", (14, 17, 23))])
def test_text_upon_the_deepest_colour_can_be_read(scheme, page):
    """Contrast of at least 4.5 (WCAG 2, level AA)."""
    text = page_templates()[scheme]["layout"]["font"]["color"]
    ink = luminance([int(text[i : i + 2], 16) for i in (1, 3, 5)])
    red, green, blue = (int(v) for v in re.findall(r"\d+", color(1, 1))[:3])
    a = alpha(color(1, 1))
    ground = luminance([a * c + (1 - a) * p for c, p in zip((red, green, blue), page, strict=True)])
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([0.0] * 5, 1.0),
        ([], 1.0),
        ([math.nan], 1.0),
        ([6.2] * 20, 7.0),
        ([0.031] * 20, 0.04),
        ([3.0] * 99 + [90.0], 3.0),
        ([12.0], 20.0),
    ],
)
def test_the_scale_ends_at_a_round_number_that_one_rare_word_does_not_move(values, end):
    assert top(values) == end


def test_the_legend_draws_the_scale_with_its_unit():
    source = legend("kl", 3.0)
    assert color(0, 3) in source
    assert color(3, 3) in source
    assert {"0", "1.5", "3 and more"} <= set(re.findall(r">([^<>]+)</span>", source))
    assert "KL(model || base)" in html.unescape(source)
    assert "(nats)" in source
    assert legend("none", 3.0) == ""
