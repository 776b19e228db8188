"""`workbench stories`: what stories there are, and making them ready for training before a study needs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import Json, print_json, print_table, say

if TYPE_CHECKING:
    from tinystories.corpus import Corpus
    from tinystories.task import StoriesTask

SPLITS = ("train", "validation", "test")
app = typer.Typer(help="Corpora of stories: fetch, count and look at them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="[CORPUS]", help="'sample', a data set of the hub, or a local file or folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a data set of the hub.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Keep the first so many stories only.")]


@app.command()
def prepare(
    corpus: Name = "sample",
    revision: Revision = None,
    tokenizer: Annotated[str, typer.Option(metavar="N|FOLDER", help="Size of a vocabulary to train, or a tokenizer.")] = "1024",
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Read a corpus, make its tokenizer and cut its stories into tokens; what was made before is found again."""
    from tinystories.corpus import describe, leakage, load_corpus
    from tinystories.task import StoriesSettings, StoriesTask

    with _progress() as tell:
        tell(f"reading {corpus}")
        made = load_corpus(corpus, revision=revision, limit=limit, on_read=lambda n: tell(f"reading {corpus}: {n:,} stories"))
        wanted = int(tokenizer) if tokenizer.isdecimal() else tokenizer
        task = StoriesTask(StoriesSettings(corpus=corpus, revision=revision, limit=limit, tokenizer=wanted), made)
        tell(f"making the tokenizer {tokenizer}")
        code = task.tokenizer
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            if stories := len(made.split(split)):
                tell(f"cutting {stories:,} stories ({split}) into tokens")
                store = task.store(split)
                per = store.n_tokens / stories
                splits[split] = {
                    "stories": stories,
                    "tokens": store.n_tokens,
                    "tokens_per_story": per,
                    "kept": str(store.folder),
                }
        tell("counting")
        sources, leaked = describe(made), leakage(made)
    rows = sources.rename(columns={"mean words": "mean_words"}).to_dict("records")
    if json:
        print_json(
            {
                "corpus": made.name,
                "revision": made.revision,
                "sha256": made.sha256,
                "labelled": made.labelled,
                "sources": [_with_interval(row) for row in rows],
                "counts": dict(made.counts),
                "leaked_between_splits": leaked,
                "vocabulary": code.vocab_size,
                "tokenizer": code.source,
                "tokenizer_sha256": code.sha256,
                "splits": splits,
            }
        )
        return
    _print_sources([_with_interval(row) for row in rows])
    _print_counts(made, leaked)
    say(f"tokenizer: {code.vocab_size:,} ids, {code.source}")
    columns = ("split", "stories", "tokens", "tokens per story", "kept in")
    print_table(
        "",
        columns,
        [(s, f"{r['stories']:,}", f"{r['tokens']:,}", f"{r['tokens_per_story']:.0f}", r["kept"]) for s, r in splits.items()],
        right=columns[1:4],
    )


@app.command()
def show(
    corpus: Name = "sample",
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    feature: Annotated[str | None, typer.Option(help="Only stories with it, such as dialogue or no_dialogue.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, and of instruction lines.")] = 0,
    instructions: Annotated[bool, typer.Option("--instructions", help="The instruction drawn for each as well.")] = False,
    revision: Revision = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Print stories with their source and the features that rules see, and the labels where the corpus has any."""
    import numpy as np

    from tinystories.corpus import load_corpus
    from tinystories.features import labels
    from tinystories.instructions import prompt
    from tinystories.task import StoriesSettings, StoriesTask
    from tinystories.told import instruction
    from workbench.seeds import numpy_generator

    made = load_corpus(corpus, revision=revision, limit=limit)
    task = StoriesTask(StoriesSettings(corpus=corpus, revision=revision, limit=limit), made)
    stories = made.split(split)
    _check_feature(task, feature)
    found = np.arange(len(stories)) if feature is None else task.having(split, feature)
    chosen = numpy_generator(seed, "stories", "show").permutation(found)[:n].tolist()
    rows: list[dict[str, Any]] = []
    for story in chosen:
        row: dict[str, Any] = stories[story]
        shown = {"story": story, "source": row["source"], "rules": [f for f, yes in labels(row["text"]).items() if yes]}
        if made.labelled:
            shown["labels"] = list(row["features"])
        if instructions:
            shown["instruction"] = prompt(instruction(row, seed), seed, 0, f"{split} {story}")
        rows.append({**shown, "text": row["text"]})
    if json:
        print_json(rows)
        return
    kind = f" with {feature}" if feature else ""
    say(f"{len(rows)} of {len(found):,} stories{kind} ({made.name}, {split})")
    for row in rows:
        told = f"; labels: {', '.join(row['labels']) or 'none'}" if made.labelled else ""
        say(f"\n--- {split} {row['story']}, from {row['source']}; rules: {', '.join(row['rules']) or 'none'}{told}\n")
        say(f"{row.get('instruction', '')}{row['text']}")


def _check_feature(task: StoriesTask, feature: str | None) -> None:
    """Refuse what no story is one for.

    Raises:
        UserError: an unknown feature.
    """
    if feature is not None:
        task.family(feature)


def _with_interval(row: dict[str, Any]) -> dict[str, Any]:
    """The dialogue share with its interval."""
    from workbench.statistics import wilson

    low, high = wilson(row["dialogue"] * row["stories"], row["stories"])
    return {**row, "dialogue_low": float(low), "dialogue_high": float(high)}


def _print_sources(rows: list[dict[str, Any]]) -> None:
    columns = ("source", "split", "stories", "words", "words per story", "with dialogue [95 %]")
    print_table(
        "",
        columns,
        [
            (
                r["source"],
                r["split"],
                f"{r['stories']:,}",
                f"{r['words']:,}",
                f"{r['mean_words']:.0f}",
                f"{r['dialogue']:.2f} [{r['dialogue_low']:.2f}, {r['dialogue_high']:.2f}]",
            )
            for r in rows
        ],
        right=columns[2:],
    )


def _print_counts(corpus: Corpus, leaked: int) -> None:
    c = corpus.counts
    say(f"{corpus.name}: revision {corpus.revision or 'none'}, sha256 {corpus.sha256[:16]}")
    say(
        f"read {c['read']:,}: kept {c['kept']:,}, repeated {c['repeated']:,}, empty {c['empty']:,}, no records {c['skipped']:,}"
    )
    say(f"validation and test stories that are also in another split: {leaked:,}")
    if c["held_out"]:
        say(f"the data set's own held-out files: {c['held_out']:,} stories, {c['leaked']:,} of them among those kept; not used")


@contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """What is being done, in a line on standard error that goes away; silent where nobody watches."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda text: None
        return
    started = time.monotonic()
    with console.status("") as status:
        yield lambda text: status.update(f"{text} ({time.monotonic() - started:.0f} s)")
