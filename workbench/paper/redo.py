"""From an entry of the catalogue and a study that was run to a result: tables, headline and what its figure needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.figures import words
from workbench.figures.tables import distinct, first, groups, keep, select, values
from workbench.measures import proportion_row
from workbench.paper import published
from workbench.paper.catalogue import Labels, OfPair, Reproduction, Samples, Scale, Table
from workbench.paper.grid import Grid
from workbench.paper.views import X_AXES, View, placed, tidy
from workbench.protocols import load_task
from workbench.results import Metric, Result
from workbench.studies.handle import Study

LABEL_TEXTS = 4000
SHOWN_PROMPTS = 6


def redo(entry: Reproduction, study: Study, scale: Scale = "cpu") -> Result:
    """The result of an entry from what the study has done so far.

    Raises:
        UserError: nothing that it needs is done yet.
    """
    shows = entry.shows
    if isinstance(shows, View):
        made = _view(entry, shows, Grid(study, scale))
    elif isinstance(shows, Table):
        made = _table(entry, shows, Grid(study, scale))
    elif isinstance(shows, OfPair):
        made = _of_pair(entry, shows, Grid(study, scale))
    elif isinstance(shows, Labels):
        made = _labels(entry, shows, study)
    else:
        made = _samples(entry, shows, study)
    provenance = {**made.provenance, "figure": entry.name, "study": study.name, "scale": scale}
    return replace(made, provenance=provenance, settings={**made.settings, "title": entry.title})


def _missing(entry: Reproduction, study: Study) -> UserError:
    return UserError(
        f"{entry.name} needs the study {study.name!r}, of which nothing that it shows is done; "
        f"run `workbench reproduce {entry.name}` without --no-run, with the same store and scale."
    )


def _view(entry: Reproduction, view: View, grid: Grid) -> Result:
    table, levels, panels = tidy(grid, view)
    if table.empty:
        raise _missing(entry, grid.study)
    paper = _marks(entry, view, grid, table)
    headline: list[Metric] = []
    for (column, row, line), points in groups(table, "column", "row", "line"):
        end = points.sort_values("x").iloc[-1]
        name = "; ".join(str(part) for part in (row, column, line) if part)
        value, low, high = (float(end[key]) for key in ("value", "low", "high"))
        seeds = int(end["seeds"])
        headline.append(Metric(name, value, low, high, int(end["n"]) // seeds, "accuracy", seeds=seeds))
    limits = ["Headline numbers are those at the right end of each line."]
    if len(paper):
        limits.append(
            "The paper's values are those of its own model (2.8 M parameters, texts of 250 letters, 10,000 iterations)."
        )
    model = grid.study.spec.model
    if grid.scale == "cpu" and model.kind != "compiled":
        limits.append(
            f"{model.blocks} blocks of width {model.width}, not the paper's 6 of 192: trends compare, numbers do not."
        )
    tables = {"table": table, "levels": levels, "paper": paper}
    return Result(
        "reproduction",
        tables,
        tuple(headline),
        limits=tuple(limits),
        settings={"x": X_AXES[view.reads], "rates": grid.rates(view.pairs(grid)), **panels},
        provenance={"seeds": grid.seeds(view.analysis, view.pairs(grid))},
    )


def _as_long(grid: Grid, table: str) -> dict[str, object]:
    """Which pairs' length of pretraining stands for that of a printed table.

    At the paper's scale its own. Else the standard length stands for the longest, and all that are shorter for a shorter one.
    """
    printed = published.pretrain_steps(table)
    if grid.scale == "paper":
        return {"pretrain_steps": printed}
    longest = max(published.pretrain_steps(name) for name in published.names() if name.endswith("K"))
    return {"length": "standard" if printed == longest else "shorter"}


def _marks(entry: Reproduction, view: View, grid: Grid, table: pd.DataFrame) -> pd.DataFrame:
    """The printed accuracies after 10,000 iterations in the panels and lines of a view."""
    empty = pd.DataFrame({name: [] for name in ("column", "row", "line", "look", "value")})
    if entry.published is None or view.reads != "accuracy" or view.lines != "c_tr":
        return empty
    printed = published.accuracies(entry.published)
    printed = keep(printed, (printed["its"] == 10_000) & (printed["role"] == view.role))
    nearest = _nearest(grid)
    wanted = set(view.pairs(grid)) & set(grid.where(prior=list(nearest), **_as_long(grid, entry.published)))
    rows: list[dict[str, Any]] = []
    for axes in grid.axes.to_dict("records"):
        if axes["pair"] not in wanted:
            continue
        same = select(printed, prior=nearest[axes["prior"]], rate_name=axes["rate_name"], c_tr=axes["share"])
        for mark in same.to_dict("records"):
            place = {**{k: axes[k] for k in ("prior", "rate_name", "rate", "pretrain_steps")}, "c_tr": axes["share"]}
            rows.append({**place, "share": mark["share"], "value": mark["value"]})
    if not rows:
        return empty
    lines = {str(line): str(first(part, "look")) for (line,), part in groups(table, "line")}
    marks = placed(pd.DataFrame(rows), view)
    return marks.assign(look=[lines.get(str(line), "base") for line in marks["line"]])


def _nearest(grid: Grid) -> dict[float, float]:
    return published.nearest_priors(sorted({float(p) for p in grid.axes["prior"].dropna()}), grid.scale == "paper")


def _table(entry: Reproduction, wanted: Table, grid: Grid) -> Result:
    """Final accuracies of every cell at both C_Te, ours and the printed ones."""
    compiled = wanted.published.startswith("table3")
    pairs = grid.where() if compiled else grid.where(**_as_long(grid, wanted.published))
    ends = grid.stacked("behaviour", "endpoints", pairs)
    if ends.empty:
        raise _missing(entry, grid.study)
    ours = keep(ends, (ends["model"] == "tuned") & ends["role"].isin(["pt", "ft"]) & ends["share"].notna())
    program = {"count": "count", "largest": "max"}.get(str(first(ours, "capability")).partition("_")[0], "count")
    if compiled:
        printed, nearest = published.compiled(wanted.published, program), None
    else:
        printed = published.accuracies(wanted.published)
        printed = keep(printed, printed["its"] == 10_000)
        nearest = _nearest(grid)
    ours = ours.sort_values(["rate", "prior", "pretrain_steps"], ascending=False, kind="stable")
    several = len(distinct(ours, "pretrain_steps")) > 1
    rows: list[dict[str, Any]] = []
    for cell in ours.to_dict("records"):
        same = select(printed, role=cell["role"], share=cell["share"], rate_name=cell["rate_name"], c_tr=cell["c_tr"])
        if nearest is not None:
            same = select(same, prior=nearest.get(cell["prior"], -1.0))
        label = ", ".join(
            filter(
                None,
                (
                    f"{cell['rate_name']} rate",
                    f"prior {cell['prior']:g}" if nearest is not None else "",
                    f"C = {cell['c_tr']:g}",
                    f"{cell['pretrain_steps']:,} steps" if several else "",
                ),
            )
        )
        what = words.ability(str(cell["capability"]), str(cell["role"]), float(cell["share"]))
        numbers = {k: cell[k] for k in ("value", "low", "high", "n", "seeds")}
        rows.append(
            {
                "cell": label,
                "measure": what,
                "role": cell["role"],
                **numbers,
                "paper": float(first(same, "value")) if len(same) else np.nan,
            }
        )
    table = pd.DataFrame(rows).drop_duplicates(["cell", "measure"], ignore_index=True)
    limits = (
        "The intervals of mean and median differences are their ranges over cells.",
        "A cell stands beside the paper's of the same share and rank of rate, and of the prior nearest in kind.",
    )
    provenance = {"seeds": grid.seeds("behaviour", pairs)}
    settings = {
        "rates": grid.rates(pairs),
        "printed": "its own compiled model" if compiled else "10,000 iterations of its own model",
    }
    headline = tuple(_distances(keep(table, table["paper"].notna())))
    return Result("paper_table", {"table": table}, headline, limits=limits, provenance=provenance, settings=settings)


def _distances(known: pd.DataFrame) -> Iterator[Metric]:
    """How far the accuracies of a table are from the printed ones: of all cells, and of each measure."""
    if known.empty:
        return
    paper, low, high = (values(known, key) for key in ("paper", "low", "high"))
    gap = np.abs(values(known, "value") - paper)
    for name, middle in (("mean", gap.mean()), ("median", np.median(gap))):
        ends = float(gap.min()), float(gap.max())
        yield Metric(f"{name} absolute difference to the paper", float(middle), *ends, len(gap), "accuracy")
    held = float(((low <= paper) & (paper <= high)).mean())
    yield Metric("printed value within the interval here", held, held, held, len(gap), "share of cells")
    for measure in distinct(known, "measure"):
        part = gap[(known["measure"] == measure).to_numpy()]
        ends = float(part.min()), float(part.max())
        yield Metric(f"mean absolute difference, {measure}", float(part.mean()), *ends, len(part), "accuracy")


def _of_pair(entry: Reproduction, wanted: OfPair, grid: Grid) -> Result:
    for pair in grid.where(**wanted.where):
        result = grid.study.result(pair, wanted.analysis)
        if result is not None:
            return replace(result, provenance={**result.provenance, "pair": pair})
    raise _missing(entry, grid.study)


def _labels(entry: Reproduction, wanted: Labels, study: Study) -> Result:
    """Shares of the labels of both abilities among training texts at C = 0 and C = 1."""
    task = load_task(study.plan.task)
    offsets = [t.correlation.offset for t in study.spec.finetune.values() if t.correlation]
    rows: list[dict[str, Any]] = []
    for share in (0.0, 1.0):
        relation = Correlation(wanted.target, wanted.partner, offsets[0] if offsets else 1, share)
        labels = task.capability(wanted.target, relation).examples(LABEL_TEXTS, 0, "labels").labels
        for capability in (wanted.partner, wanted.target):
            found = labels[capability].numpy()
            rows += [
                {"capability": capability, "share": share, "label": int(label), **proportion_row(found == label)}
                for label in np.unique(found)
            ]
    table = pd.DataFrame(rows).assign(unit="share of texts")
    largest: list[Metric] = []
    for (capability, share), part in groups(table, "capability", "share"):
        value, low, high = (float(values(part, key)[values(part, "value").argmax()]) for key in ("value", "low", "high"))
        name = f"most frequent label of {capability}, {words.texts(share)}"
        largest.append(Metric(name, value, low, high, LABEL_TEXTS, "share of texts"))
    return Result("label_histogram", {"table": table}, tuple(largest), provenance={"seeds": [0]})


def _samples(entry: Reproduction, wanted: Samples, study: Study) -> Result:
    """Prompts with their answers, as text."""
    task = load_task(study.plan.task)
    examples = task.capability(wanted.capability).examples(SHOWN_PROMPTS, 0)
    rows = [
        {"prompt": task.describe(examples.tokens[i].tolist()), "answer": task.describe(examples.answer[i].tolist())}
        for i in range(len(examples))
    ]
    return Result("prompt_samples", {"table": pd.DataFrame(rows)}, (), provenance={"seeds": [0]})
