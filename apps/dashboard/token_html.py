"""Texts token by token as HTML: a span for each, coloured by a number, with what it is on hover; everything is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.figures.theme import VERMILLION, rgba

By = Literal["surprisal", "kl", "none"]
UNIT = "nats"
WHAT = {"surprisal": "surprisal of the token", "kl": "KL(model || base) where it was expected"}
DEEPEST = 0.6
"""Opacity at the upper end of the scale; text upon it can be read on white and on black pages."""
CLIPPED_AT = 0.95
"""The scale ends at about this quantile, so that one rare word does not pale all others."""
END, BREAK = "∎", "↵"
_FAINT = "opacity:.55;user-select:none"


@dataclass(frozen=True)
class Piece:
    """Tokens that stand for whole characters: one, or those that share a character."""

    text: str
    """Empty for a token without characters, such as the one that ends a text."""
    ids: tuple[int, ...]
    surprisal: float
    """Nats, summed over its tokens; NaN for what begins a text, which nothing predicts."""
    kl: float
    """Nats, summed likewise."""
    prompt: bool
    """Given, and not written by the model."""


def pieces(
    ids: Sequence[int],
    describe: Callable[[Sequence[int]], str],
    surprisal: Sequence[float],
    kl: Sequence[float],
    prompt: int,
) -> list[Piece]:
    """A text cut into pieces whose texts together are `describe(ids)`, letter by letter.

    A cut is made where what was read so far is a beginning of the whole text: behind half a character it is not. Nothing is
    decoded alone, since some tokenizers drop the space that a text begins with.

    Args:
        ids: all tokens, prompt first.
        describe: tokens to text.
        surprisal: of each token but the first.
        kl: likewise.
        prompt: how many tokens were given.
    """
    whole = describe(ids)
    nats = np.array([[np.nan, np.nan], *zip(surprisal, kl, strict=True)])
    found: list[Piece] = []
    start = shown = 0
    for stop in range(1, len(ids) + 1):
        read = describe(ids[:stop])
        if not whole.startswith(read) and stop < len(ids):
            continue
        until = len(whole) if stop == len(ids) else max(shown, len(read))
        total = nats[start:stop].sum(0)
        found.append(Piece(whole[shown:until], tuple(ids[start:stop]), float(total[0]), float(total[1]), start < prompt))
        start, shown = stop, until
    return found


def top(values: Iterable[float]) -> float:
    """The upper end of a scale that these numbers share."""
    known = np.array([value for value in values if not np.isnan(value)])
    end = float(np.quantile(known, CLIPPED_AT)) if len(known) else 0.0
    if end <= 0:
        return 1.0
    digit = 10.0 ** np.floor(np.log10(end))  # rounded up to one digit
    return float(f"{np.ceil(end / digit * (1 - 1e-9)) * digit:.1g}")


def spans(text: Sequence[Piece], by: By, most: float) -> str:
    """The text as one block of HTML, white space and line breaks as they are.

    Args:
        text: its pieces.
        by: which number colours it.
        most: the number of the deepest colour.
    """
    shown = "".join(_span(piece, by, most) for piece in text if piece.text or not piece.prompt)
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;font-size:0.95rem">{shown}</div>'


def color(value: float, most: float) -> str:
    """From the page itself at 0 to the deepest colour at `most` and beyond."""
    share = 0.0 if np.isnan(value) else min(max(value / most, 0.0), 1.0)
    return rgba(VERMILLION, round(DEEPEST * share, 3))


def _span(piece: Piece, by: By, most: float) -> str:
    style = ["border-radius:2px", "padding:2px 0"]
    if by != "none":
        style.append(f"background-color:{color(piece.surprisal if by == 'surprisal' else piece.kl, most)}")
    if piece.prompt:
        style.append("border-bottom:1px dotted rgba(128,128,128,0.9)")
    inner = html.escape(piece.text).replace("\n", f'<span aria-hidden="true" style="{_FAINT}">{BREAK}</span>\n')
    inner = inner or f'<span style="{_FAINT}">{END}</span>'
    return f'<span title="{_attribute(_hover(piece))}" style="{";".join(style)}">{inner}</span>'


def _hover(piece: Piece) -> str:
    name = f"“{piece.text.replace(chr(10), BREAK)}”" if piece.text else "no characters: the text ends here"
    which = f"token{'s' if len(piece.ids) > 1 else ''} {', '.join(map(str, piece.ids))}"
    if np.isnan(piece.surprisal):
        return f"{name} ({which})"
    return f"{name} ({which})\nsurprisal {piece.surprisal:.2f} {UNIT}\nKL from the base {piece.kl:.3f} {UNIT}"


def _attribute(text: str) -> str:
    return html.escape(text, quote=True).replace("\n", "&#10;")


def legend(by: By, most: float) -> str:
    """The scale drawn, with its unit; empty where nothing is coloured."""
    if by == "none":
        return ""
    bar = f"background:linear-gradient(to right,{color(0, most)},{color(most, most)});border:1px solid rgba(128,128,128,0.55)"
    ticks = "".join(f"<span>{tick}</span>" for tick in ("0", f"{most / 2:g}", f"{most:g} and more"))
    return (
        '<div style="display:flex;gap:10px;align-items:flex-start;flex-wrap:wrap;font-size:0.85rem;line-height:1.3">'
        f"<span>{html.escape(WHAT[by])} ({UNIT})</span>"
        f'<span style="display:inline-block;width:240px"><span style="display:block;height:12px;margin-top:3px;{bar}"></span>'
        f'<span style="display:flex;justify-content:space-between">{ticks}</span></span>'
        f"<span>dotted: the prompt; {BREAK} a line break; {END} the end of a text</span></div>"
    )
