"""Progress on a terminal: a bar per running stage with loss, accuracy and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from workbench.runs import Store
from workbench.studies.stage import Stage

LINE_EVERY_SECONDS = 20.0


class Silent:
    """Shows nothing."""

    def begin(self, stages: Sequence[Stage], done: int) -> None:
        """Nothing."""

    def started(self, stage: Stage) -> None:
        """Nothing."""

    def tick(self, running: Sequence[Stage]) -> None:
        """Nothing."""

    def ended(self, stage: Stage, reason: str | None) -> None:
        """Nothing."""

    def stopping(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Terminal:
    """Bars on a terminal, lines elsewhere; both on standard error, so that standard output stays machine-readable."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.total: TaskID | None = None
        self.begun = self.last_line = time.monotonic()
        self.count = self.finished = 0

    def begin(self, stages: Sequence[Stage], done: int) -> None:
        """Say what there is to do."""
        self.count = len(stages)
        if done:
            already = f"{done} stage{'s are' if done > 1 else ' is'} done already"
            self.console.print(f"{already}, {self.count} to do", highlight=False)
        self.bars.start()
        self.total = self.bars.add_task("[bold]study", total=max(1, self.count), note="")

    def started(self, stage: Stage) -> None:
        """Add a bar."""
        self.tasks[stage.key] = self.bars.add_task(stage.name, total=None, note="starting")

    def tick(self, running: Sequence[Stage]) -> None:
        """Read the status of running stages."""
        lines: list[str] = []
        for stage in running:
            run = self.store.find(stage.key)
            status = run.status if run else {}
            step, steps, values = status.get("step"), status.get("steps"), status.get("values") or {}
            note = _note(values)
            if step is not None and steps:
                self.bars.update(self.tasks[stage.key], total=steps, completed=step, note=note)
                lines.append(f"{stage.name} {step}/{steps} {note}")
            else:
                self.bars.update(self.tasks[stage.key], note="working")
                lines.append(stage.name)
        if not self.console.is_terminal and lines and time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(f"  running: {'; '.join(lines)}", highlight=False, soft_wrap=True)

    def ended(self, stage: Stage, reason: str | None) -> None:
        """Remove the bar and print a line."""
        self.finished += 1
        self.bars.remove_task(self.tasks.pop(stage.key))
        if self.total is not None:
            self.bars.update(self.total, completed=self.finished, note=f"{self.finished} of {self.count} stages")
        seconds = time.monotonic() - self.begun
        mark = "[green]done[/]  " if reason is None else "[red]failed[/]"
        self.bars.console.print(f"{mark} {stage.name} [dim]({self.finished}/{self.count}, {seconds:.0f} s)[/]", highlight=False)

    def stopping(self) -> None:
        """Say at once that the key was heard."""
        self.bars.console.print("stopping: running stages save where they are ...", highlight=False)

    def close(self) -> None:
        """Take the bars away."""
        self.bars.stop()


def _note(values: Mapping[str, float | None]) -> str:
    """What is known; a number that is none is null in a status."""
    known = {name: value for name, value in values.items() if value is not None}
    parts: list[str] = []
    if "loss" in known:
        parts.append(f"loss {known['loss']:.3f}")
    if "accuracy" in known:
        parts.append(f"accuracy {known['accuracy']:.2f}")
    if known.get("seconds_left"):
        left = round(known["seconds_left"])
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)
