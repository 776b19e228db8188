from __future__ import annotations

import io
from contextlib import suppress

import pytest
from rich.console import Console
from studies.tiny import stage_of

import workbench.engine.progress as progress
from workbench.engine.progress import Silent, Terminal
from workbench.runs import Store


@pytest.fixture
def shown(monkeypatch):
    """`shown(store, terminal) -> (reporter, text so far)`."""

    def make(store: Store, terminal: bool):
        out = io.StringIO()
        made = lambda stderr: Console(file=out, force_terminal=terminal, width=100)  # noqa: E731
        monkeypatch.setattr(progress, "Console", made)
        return Terminal(store), out.getvalue

    return make


def write(store: Store, stage, **values: float) -> None:
    with suppress(KeyboardInterrupt), store.write("tiny", stage.name, stage.kind, stage.key, stage.spec) as writer:
        writer.progress(30, 120, **values)
        raise KeyboardInterrupt


def test_lines_where_there_is_no_terminal(whole, tmp_path, shown, monkeypatch):
    store = Store(tmp_path)
    reporter, text = shown(store, terminal=False)
    base, tuned = stage_of(whole, "pretrain-base"), stage_of(whole, "finetune")
    reporter.begin((base, tuned), 9)
    reporter.started(base)
    reporter.tick([base])
    assert text() == "9 stages are done already, 2 to do\n"
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", -1.0)
    reporter.tick([base])
    assert text().endswith("  running: pretrain-base-s0\n")  # nothing written yet
    write(store, base, loss=0.5, accuracy=0.25, seconds_left=75)
    reporter.tick([base])
    assert text().endswith("  running: pretrain-base-s0 30/120 loss 0.500, accuracy 0.25, 1:15 left\n")
    reporter.ended(base, None)
    reporter.started(tuned)
    reporter.ended(tuned, "too hot")
    reporter.close()
    done, failed = text().splitlines()[-2:]
    assert done.startswith("done   pretrain-base-s0 (1/2, ")
    assert failed.startswith("failed finetune-wrapped-s0 (2/2, ")
    assert "\x1b" not in text()


def test_bars_on_a_terminal(whole, tmp_path, shown):
    reporter, text = shown(Store(tmp_path), terminal=True)
    base = stage_of(whole, "pretrain-base")
    reporter.begin((base,), 0)
    reporter.started(base)
    write(reporter.store, base, loss=0.5)
    reporter.tick([base])
    (bar,) = [task for task in reporter.bars.tasks if task.description == base.name]
    assert (bar.completed, bar.total, bar.fields["note"]) == (30, 120, "loss 0.500")
    reporter.ended(base, None)
    (whole_bar,) = reporter.bars.tasks
    assert (whole_bar.completed, whole_bar.total, whole_bar.fields["note"]) == (1, 1, "1 of 1 stages")
    reporter.close()
    assert reporter.bars.finished
    assert "done" in text()


def test_a_stage_that_writes_null_for_what_is_no_number(whole, tmp_path, shown):
    """A status that is read while a loss is NaN."""
    reporter, _ = shown(Store(tmp_path), terminal=True)
    base = stage_of(whole, "pretrain-base")
    reporter.begin((base,), 0)
    reporter.started(base)
    write(reporter.store, base, loss=float("nan"), accuracy=0.5)
    reporter.tick([base])
    assert "accuracy 0.50" in str([task.fields["note"] for task in reporter.bars.tasks])
    reporter.close()


def test_silence(whole, capsys):
    reporter, stages = Silent(), whole.plan.stages[:1]
    reporter.begin(stages, 0)
    reporter.started(stages[0])
    reporter.tick(stages)
    reporter.ended(stages[0], None)
    reporter.close()
    assert capsys.readouterr() == ("", "")
