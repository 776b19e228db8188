"""`python -m tests.benchmarks`: speeds as ratios, with the bars that they should pass. Always ends with exit code 0.

On a busy machine numbers say less: the load is printed, ratios are of CPU seconds of neighbours in time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.curvature import against_eigenthings, products_in_gradients
from tests.benchmarks.data import tokens_per_second
from tests.benchmarks.generation import against_one_by_one
from tests.benchmarks.leave_one_out import against_naive
from tests.benchmarks.patching import against_one_at_a_time
from tests.benchmarks.pruning import against_whole_passes
from tests.benchmarks.startup import help_seconds
from tests.benchmarks.stories import against_plain, paper_batch_seconds
from tests.benchmarks.training import LARGE, SMALL, Speed, compare
from tests.benchmarks.workers import two_against_one

Row = tuple[str, str, str, bool]
PAPER_STEP_SECONDS = 0.48
"""An update of stories_91M (131,072 tokens, bf16, 8 parts), measured on an H100."""


def rows(short: bool) -> Iterator[Row]:
    """`(what, measured, bar, passed)` one after the other; `short` only shows that everything runs."""
    rate = tokens_per_second(32 if short else 320)
    yield "finished tokens of the pretraining protocol, one core", f"{rate / 1e6:.1f} M/s", ">= 5 M/s", rate >= 5e6
    for size, turns in ((SMALL, 24), (LARGE, 12)):
        for answer_only in (False, True):
            speed = compare(size, answer_only, 2 if short else turns)
            kind = "answer-only" if answer_only else "full"
            yield _step(f"training step, {size.name}, {kind} loss", speed)
            if size is SMALL and not answer_only:
                share = speed.batch_share
                yield "share of that step spent on making the batch", f"{share:.1%}", "<= 3 %", share <= 0.03
    for accumulate in (1, 4):
        speed = against_plain(1 if short else 24, accumulate)
        parts = f", in {accumulate} parts" if accumulate > 1 else ""
        yield _step(f"training step, llama on packed stories{parts}", speed)
        if accumulate == 1:
            yield "share of that step spent on the windows", f"{speed.batch_share:.2%}", "<= 2 %", speed.batch_share <= 0.02
    seconds = paper_batch_seconds(1 if short else 15)
    share = seconds / PAPER_STEP_SECONDS
    said = f"{1e3 * seconds:.1f} ms, {share:.1%} of {PAPER_STEP_SECONDS} s"
    yield "256 windows of 512 tokens, against a step of stories_91M on an H100", said, "<= 2 %", share <= 0.02
    ratio, ours, naive = against_naive(4 if short else 32)
    said = f"{ratio:.0f}x the naive loop ({ours:.2f} against {naive:.1f} s)"
    yield "leave-one-out of 512 neurons, 2 blocks, 256 examples", said, ">= 20x", ratio >= 20
    for other_model, donor in ((False, "counterfactual prompts"), (True, "another model")):
        ratio, ours, naive = against_one_at_a_time(4 if short else 32, other_model)
        said = f"{ratio:.0f}x one at a time ({ours:.2f} against {naive:.1f} s)"
        yield f"patching 14 sites at 40 places from {donor}", said, ">= 5x", ratio >= 5
    for size, examples in ((SMALL, 500), (LARGE, 64)):
        ratio = against_whole_passes(size, examples, 1 if short else 5)
        what = f"pruning curve in the last of {size.blocks} blocks, width {size.width}"
        yield what, f"{ratio:.1f}x whole passes", ">= 1.3x", ratio >= 1.3
    yield from _curvature(short)
    ratio, ours, naive = against_one_by_one(1 if short else 8, 16 if short else 128)
    said = f"{ratio:.0f}x one by one without a cache ({ours:.2f} against {naive:.1f} s)"
    yield "greedy continuations of 32 prompts, 4 blocks, width 128", said, ">= 5x", ratio >= 5
    ratio = two_against_one(10 if short else 100, 1 if short else 5)
    yield "two workers of one thread", f"{ratio:.2f}x one of two threads", ">= 1.4x", ratio >= 1.4
    seconds = help_seconds(1 if short else 7)
    yield "workbench --help", f"{seconds:.2f} s", "< 0.7 s", seconds < 0.7


def _curvature(short: bool) -> Iterator[Row]:
    """Products with the Hessian, and whole spectra against the library of that purpose."""
    single, column = products_in_gradients(1 if short else 15)
    yield "product with the Hessian, 5,000 parameters, one after another", f"{single:.2f} gradients", "<= 2.5", single <= 2.5
    yield "column of the full Hessian, 5,000 parameters", f"{column:.2f} gradients", "<= 1.6", column <= 1.6
    try:
        found = against_eigenthings(short)
    except ImportError:
        yield "spectra against hessian-eigenthings", "pip install -c constraints.txt -e '.[bench]'", ">= 2x", False
        return
    names = ("top 10 eigenvalues", "density, 80 steps x 10 probes, top 10 deflated", "the same with 3 probes against 10")
    for what, one in zip(names, found, strict=True):
        ratio = one.theirs / one.ours
        said = (
            f"{ratio:.1f}x hessian-eigenthings ({one.ours:.1f} against {one.theirs:.1f} s; "
            f"error {one.our_error:.1e} against {one.their_error:.1e})"
        )
        yield f"{what}, 100,000 parameters", said, ">= 2x", ratio >= 2 and one.our_error <= one.their_error


def _step(what: str, speed: Speed) -> Row:
    said = f"{speed.ratio:.2f}x plain ({speed.ours_ms:.1f} against {speed.plain_ms:.1f} ms, {speed.tokens:,} tokens)"
    return what, said, ">= 0.95x", speed.ratio >= 0.95


def main(short: bool = False) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = Table("what", "measured", "bar", "", title=f"one thread, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for what, measured, bar, passed in rows(short):
        table.add_row(what, measured, bar, "ok" if passed else "below")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(short="--short" in sys.argv[1:])
