"""The report of a study: one HTML file that a person can send to another, and a small one of a result for notebooks."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from workbench import card
from workbench.figures import words
from workbench.results import Metric, Result
from workbench.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

    from workbench.studies.handle import Study

_ID = re.compile(r"[^A-Za-z0-9_-]+")


def write_report(study: Study, path: Path) -> Path:
    """Write everything that a study has found into one self-contained HTML file.

    Args:
        study: of a store; what is not done yet is named as missing.
        path: of the file; its folder is made.

    Returns:
        The path.
    """
    from workbench.figures.theme import page_templates
    from workbench.files import atomic_text
    from workbench.report_page import page

    figures: dict[str, str] = {}
    body = [_head(study), _verdicts(study.verdicts())]
    for pair in study.pair_names:
        body.append(f'<h2 id="{_slug(pair)}">Pair: {escape(pair)}</h2>')
        for analysis in study.spec.analyses:
            result = study.result(pair, analysis)
            body.append(_missing(study, analysis) if result is None else _section(study, pair, analysis, result, figures))
    body += [_spec(study), _provenance(study)]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(path, page(f"{study.name}: report", "\n".join(body), page_templates(), figures))
    return path


def result_html(result: Result) -> str:
    """Headline, evidence and limits of one result: a fragment without scripts, for notebooks."""
    parts = [f"<h4>{escape(result.name.replace('_', ' '))}</h4>", _headline(result.headline)]
    if result.evidence:
        parts.append(_list(f"{e.text} ({words.DIRECTIONS[e.direction]})" for e in result.evidence))
    if result.limits:
        parts.append(f"<details><summary>Limits</summary>{_list(result.limits)}</details>")
    return "".join(parts)


def python_code(store: Path, study: str, pair: str, analysis: str, seed: int | None = None, settings: str = "") -> str:
    """The Python that makes the figure of a result; of one with settings of its own (`Study.variants`), by these."""
    which = "" if seed is None else f", seed={seed}"
    return "\n".join(
        [
            "import workbench as wb",
            "from workbench.figures import figure",
            "",
            f"study = wb.Study.open(wb.Store({str(store)!r}), {study!r})",
            f"result = study.variants({pair!r}, {analysis!r}{which})[{settings!r}]"
            if settings
            else f"result = study.result({pair!r}, {analysis!r}{which})",
            "figure(result).show()",
        ]
    )


def run_code(store: Path, name: str) -> str:
    """The Python that makes the figure of one run's result."""
    return "\n".join(
        [
            "import workbench as wb",
            "from workbench.figures import figure",
            "",
            f"result = wb.Store({str(store)!r}).get({name!r}).result()",
            "figure(result).show()",
        ]
    )


def _slug(*names: str) -> str:
    return "-".join(_ID.sub("_", name) for name in names)


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of plain text; `numbers` are the columns that must not break."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    kinds = ["<td>", '<td class="number">']
    lines = ([f"{kinds[i in numbers]}{escape(cell)}</td>" for i, cell in enumerate(row)] for row in rows)
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(study: Study) -> str:
    done, total = study.progress()
    links = "".join(f'<a href="#{_slug(pair)}">{escape(pair)}</a>' for pair in study.pair_names)
    state = (
        f"All {total} stages are done." if done == total else f"{done} of {total} stages are done; the rest is missing here."
    )
    return (
        f"<h1>{escape(study.name)}</h1>"
        f"<p>{escape(study.spec.note)}</p>"
        f'<p class="faint">Seeds {escape(words.listed(study.spec.seeds))}. {state} '
        f"Written on {datetime.now(UTC):%d %B %Y, %H:%M} UTC.</p>"
        f'<nav><a href="#verdicts">verdicts</a>{links}<a href="#spec">study file</a>'
        f'<a href="#provenance">provenance</a></nav>'
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    parts = ['<h2 id="verdicts">Verdicts</h2>']
    if not verdicts:
        parts.append("<p>The study has no pair of models to judge.</p>")
    for verdict in verdicts:
        seeds = f"seeds {words.listed(verdict.seeds)}" if verdict.seeds else "no seed done yet"
        reason = verdict.reason[:1].upper() + verdict.reason[1:]
        parts.append(
            f'<div class="card" style="--mark:var(--{escape(verdict.verdict)})">'
            f"<h3>{escape(verdict.pair)}: {escape(words.capability(verdict.capability))} is "
            f'<span class="verdict">{escape(verdict.verdict)}</span></h3>'
            f'<p class="faint">{escape(words.VERDICTS[verdict.verdict])}; {escape(seeds)}</p><p>{escape(reason)}</p>'
            f"{_evidence(verdict)}</div>"
        )
    return "".join(parts)


def _evidence(verdict: Verdict) -> str:
    """The evidence card, and the verdict as a paragraph to quote."""
    if not verdict.evidence:
        return ""
    head = ("evidence", "what it says", "number [95 % interval]", "n", "direction")
    rows = [
        (line.title, e.text if (e := line.evidence) else "", line.number, line.texts, line.points)
        for line in card.lines(verdict)
    ]
    return f"{_rows(head, rows)}<details><summary>Quote this verdict</summary><p>{escape(card.quote(verdict))}</p></details>"


def _headline(metrics: Sequence[Metric]) -> str:
    head = ("number", "value [95 % interval]", "n", "seeds", "unit")
    rows = [(words.metric(m.metric), words.interval(m), f"{m.n:,}", str(m.seeds), m.unit) for m in metrics]
    return _rows(head, rows, numbers=(1,))


def _missing(study: Study, analysis: str) -> str:
    return (
        f"<h3>{escape(analysis)}</h3><p>There is no result yet. "
        f"<code>workbench study run {escape(study.name)}</code> makes it.</p>"
    )


def _section(study: Study, pair: str, analysis: str, result: Result, figures: dict[str, str]) -> str:
    from workbench.figures import alt, figure

    name = _slug(pair, analysis)
    figures[name] = str(figure(result).to_json())
    said = alt(result)
    links = [
        f'<a download="{name}-{escape(table)}.csv" href="{_csv(frame)}">{escape(table)}.csv</a>'
        for table, frame in result.tables.items()
    ]
    links.append(f'<a download="{name}.json" data-figure="{name}" href="#{name}">figure.json</a>')
    return (
        f"<h3>{escape(analysis.replace('_', ' '))}</h3>"
        f'<figure><div class="figure" id="{name}" role="img" aria-label="{escape(said)}"></div>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
        f"{_list(f'{e.text} ({words.DIRECTIONS[e.direction]})' for e in result.evidence) if result.evidence else ''}"
        f"<details><summary>Numbers</summary>{_headline(result.headline)}</details>"
        f"<details><summary>Limits: what this does not show</summary>{_list(result.limits)}</details>"
        f"<details><summary>Python</summary><pre>{escape(python_code(study.store.root, study.name, pair, analysis))}</pre></details>"
        f'<div class="downloads"><span class="faint">Data:</span>{"".join(links)}</div>'
    )


def _csv(frame: pd.DataFrame) -> str:
    """A table as a data address; six digits are more than any interval here resolves."""
    text = frame.to_csv(index=False, float_format="%.6g")
    return "data:text/csv;charset=utf-8," + quote(text, safe=" ,.;:()[]/-_=+*")


def _spec(study: Study) -> str:
    import yaml

    body = study.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True)
    return f'<h2 id="spec">Study file</h2><p>The whole experiment; this file repeats it.</p><pre>{escape(text)}</pre>'


def _provenance(study: Study) -> str:
    runs = [run for _, run in study.runs() if run is not None]
    stamps = [run.provenance for run in runs if run.provenance]
    packages: Mapping[str, Any] = stamps[-1].get("versions", {}) if stamps else {}
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in packages.items() if version) or "not recorded"),
        ("machines", _each(f"{s.get('host')} ({s.get('platform')})" for s in stamps)),
        ("devices and dtypes", _each(f"{s.get('device')}, {s.get('dtype')}" for s in stamps)),
        ("code", _each(_revision(s.get("git")) for s in stamps)),
        ("report written with", f"Python {platform.python_version()}"),
    ]
    head = ("stage", "seed", "key", "state", "finished")
    stages = [
        (
            stage.name,
            str(stage.seed),
            stage.key,
            "to do" if run is None else "damaged" if run.damaged else str(run.status.get("state")),
            "" if run is None else str(run.status.get("updated", ""))[:19].replace("T", " "),
        )
        for stage, run in study.runs()
    ]
    return (
        f'<h2 id="provenance">Provenance</h2>{_rows(("what", "value"), rows)}'
        f"<details><summary>{len(stages)} stages with their keys</summary>{_rows(head, stages)}</details>"
    )


def _each(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or "not recorded"


def _revision(git: Any) -> str:
    if not isinstance(git, Mapping):
        return "no version control"
    return f"{str(git.get('revision'))[:12]}{' with local changes' if git.get('dirty') else ''}"
