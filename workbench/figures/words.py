"""Numbers and names as a person says them: one wording for legends, captions, the report and the dashboard."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import Bound
from workbench.verdict import Class

MODELS: Mapping[str, str] = {
    "base": "base",
    "tuned": "fine-tuned",
    "untrained": "untrained (random weights)",
    "never_had_it": "never had it",
    "revived": "revived",
}
ARMS: Mapping[str, str] = {
    "revived": "revived (the fine-tuned model)",
    "never_had_it": "never had it",
    "scratch": "from scratch",
    "irrelevant": "irrelevant data",
    "other_operands": "other operands of the family",
    "unrelated": "unrelated strings",
}


def arm(name: str) -> str:
    """An arm of a revival: `revived (the fine-tuned model), rate 1e-05` for `revived@1e-05`."""
    which, _, rate = name.partition("@")
    return ARMS.get(which, which.replace("_", " ")) + (f", rate {rate}" if rate else "")


ROLES: Mapping[str, str] = {"pt": "pretraining ability", "ft": "fine-tuned ability", "other": "other ability"}
VERDICTS: Mapping[Class, str] = {
    "untouched": "fine-tuning left it as it was",
    "learned": "fine-tuning taught it",
    "masked": "lost in behaviour, yet only covered: it comes back cheaply",
    "erased": "lost, and as costly to teach again as to a model that never had it",
    "altered": "changed, between covered and gone",
    "inconclusive": "the evidence does not decide",
}
DIRECTIONS: Mapping[Direction, str] = {
    "masked": "points to masked",
    "erased": "points to erased",
    "learned": "points to learned",
    "untouched": "points to untouched",
    "neutral": "takes no side",
    "uninformative": "no room to show anything",
}

UNITS: Mapping[str, str] = {
    "neurons": "hidden neurons",
    "heads": "attention heads",
    "rows": "rows of matrices",
    "weights": "single weights",
}
SCORES: Mapping[str, str] = {
    "signed_taylor": "signed gradient",
    "input_taylor": "signed, input row",
    "abs_taylor": "|gradient x weight|",
    "snip": "SNIP",
    "wanda": "Wanda",
    "magnitude": "size of weights",
    "activation": "mean |activation|",
    "difference": "change of weights",
    "obd": "second order (OBD)",
    "leave_one_out": "leave one out, loss",
    "leave_one_out_accuracy": "leave one out, accuracy",
    "set_difference": "set difference",
    "random": "random order",
}


def capability(name: str) -> str:
    """`count_a` -> `counting a`; a name that is no such phrase only loses its underscores."""
    if name.startswith("asked_"):  # behind an instruction
        return f"{capability(name.removeprefix('asked_'))} when asked"
    identified = re.fullmatch(r"(count)_(j\d)_(.+)", name)  # another family token that asks the same
    if identified:
        return f"counting {identified[3]} under {identified[2].upper()}"
    verb, _, rest = name.partition("_")
    phrase = {"count": "counting {}", "index": "index of {}"}.get(verb) if rest else None
    return (phrase.format(rest) if phrase else name).replace("_", " ")


def kind(name: str) -> str:
    """Whole texts of a kind: `asked_no_dialogue` -> `without dialogue, not asked for`."""
    if name.startswith("adversarial_"):
        return f"without {capability(name.removeprefix('adversarial_'))}, though asked for"
    asked, plain = name.startswith("asked_"), name.removeprefix("asked_")
    has = not plain.startswith("no_")
    told = f"{'with' if has else 'without'} {capability(plain.removeprefix('no_'))}"
    return f"{told}, {'asked for' if has else 'not asked for'}" if asked else told


def texts(share: float | None) -> str:
    """Which texts a share of correlation (C_Te) means."""
    if share is None or math.isnan(share):
        return "plain texts"
    return {0.0: "uncorrelated texts", 1.0: "correlated texts"}.get(share, f"texts correlated in a share of {share:g}")


def ability(name: str, role: str, share: float | None = None) -> str:
    """A series: `counting a (pretraining ability), uncorrelated texts`."""
    where = "" if share is None else f", {texts(share)}"
    return f"{capability(name)} ({ROLES.get(role, role)}){where}"


def number(value: float, digits: int = 2) -> str:
    """A number with as many digits as one reads: `0.95`, `22`, `1,400`, `3.1e-05`."""
    if not math.isfinite(value):
        return "not defined"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 20 or (float(value).is_integer() and size >= 2):
        return f"{value:.0f}"
    if 0 < size < 10**-digits / 2:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


_SAYS: Mapping[Bound, str] = {"exact": "", "upper": "at most ", "lower": "at least ", "undefined": ""}


def interval(line: Metric | Evidence, unit: str = "") -> str:
    """`0.95 [0.93, 0.97]`, with `at least` or `at most` where the number is a bound."""
    if line.bound == "undefined" or not math.isfinite(line.value):
        return "not defined"
    ends = f" [{number(line.low)}, {number(line.high)}]" if math.isfinite(line.low) and line.low != line.high else ""
    return f"{_SAYS[line.bound]}{number(line.value)}{ends}{' ' + unit if unit else ''}"


METRICS: Mapping[str, str] = {
    "cka_base_tuned": "CKA of base and fine-tuned",
    "moved_most_changed": "share of the divergence, 8 features",
    "change_pt": "change of accuracy",
    "collateral": "change, other families",
    "constant_share_tuned": "share of the change that is constant",
    "dip_base_revived_pt": "dip between base and revived",
    "explained": "share of the change by one component",
    "largest_change": "change of the chosen component's share, in size",
    "moved": "attention moved, chosen head",
    "overlap": "paths in common (Jaccard)",
    "relative_norm": "change of the weights' norm",
    "edges": "edges in common (Jaccard)",
    "recovered": "share of the loss recovered",
    "room": "room: base less control",
    "room_never": "probe: base less never had it",
    "share_kept": "share of the probe's room kept",
    "ratio": "steps against never had it",
    "told_apart_tuned": "prompts told apart when fine-tuned (logits)",
    "tuned_concentration_pt": "share of the divergence at the answer",
    "tuned_ft": "accuracy after fine-tuning",
    "restores": "share of the loss restored",
    "restores_change": "change of accuracy by one component",
    "restores_over_control": "ahead of the control",
    "restores_all": "accuracy with all components",
    "restores_learned": "accuracy with the mask",
    "gain": "ahead of random ones",
}
"""Numbers that lines of evidence rest on."""


def metric(name: str) -> str:
    """`steps_revived` -> `steps revived`."""
    if name in METRICS:
        return METRICS[name]
    for suffix, words in (("_pt", ", pretraining ability"), ("_ft", ", fine-tuned ability")):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " ") + words
    return name.replace("_", " ")


def title(analysis: str) -> str:
    """`logit_lens` -> `logit lens`."""
    return analysis.replace("_", " ")


def seeds(result: Result) -> tuple[int, ...]:
    """The seeds behind a result, which may be one."""
    many = result.provenance.get("seeds")
    if isinstance(many, Sequence) and not isinstance(many, str):
        return tuple(int(seed) for seed in many)
    one = result.provenance.get("seed")
    return (int(one),) if isinstance(one, int) else ()


def sample(result: Result, n: int | None = None) -> str:
    """What a figure rests on: `500 texts per seed, seeds 0 and 1; bands are 95 % intervals`."""
    found = seeds(result)
    count = n if n is not None else max((m.n for m in result.headline), default=0)
    per = " per seed" if len(found) > 1 else ""
    which = f"seed{'s' if len(found) > 1 else ''} {listed(found)}" if found else ""
    parts = [f"{count:,} texts{per}" if count else "", which]
    return ", ".join(p for p in parts if p) + "; 95 % intervals"


def broken(text: str, width: int) -> list[str]:
    """Lines of at most this many characters where words allow it."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def listed(items: Sequence[object]) -> str:
    """`0, 1 and 2`."""
    *most, last = [str(item) for item in items] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def subject(result: Result) -> tuple[str, str]:
    """Names of the pretraining and the fine-tuned ability of a result."""
    pt, ft = (str(result.provenance.get(key, "")) for key in ("capability", "tuned_on"))
    return capability(pt) if pt else "the ability", capability(ft) if ft else "the trained ability"
