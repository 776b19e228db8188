"""`workbench spectrum`: eigenvalues of the loss's Hessian at a run's model, or at the models of a pair."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from workbench.cli.common import Json, StorePath, human_seconds, open_to_read, print_json, print_result


def spectrum(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A training run of the store, a study, or study:pair.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as top=20 or n=64.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Checkpoint of a run; the last when absent.")] = None,
    capability: Annotated[
        str | None, typer.Option(help="What a run's examples ask for; what it was evaluated on if absent.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="One seed of a study; all of them when absent.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Measure the sharpest and the most negative directions of the loss and the density of all, each with what it rests on."""
    from workbench.cli.analyze import analyze
    from workbench.curvature.of_run import spectrum_of_run
    from workbench.errors import UserError, did_you_mean
    from workbench.studies.loading import apply_override

    opened = open_to_read(store)
    name, pair, _ = target.partition(":")
    if pair and name not in opened.studies():
        raise UserError(f"the store {opened.root} has no study {name!r}{did_you_mean(name, opened.studies())}")
    if name in opened.studies():
        if step is not None or capability is not None:
            raise UserError("--step and --capability are of one run; name a run instead of a study, or leave them out.")
        analyze(target, "spectrum", settings, None, seed, False, store, json)
        return
    values: dict[str, Any] = {}
    for setting in settings or ():
        apply_override(values, setting)
    run = opened.get(target)
    bar = None if json else _Bar()
    found = spectrum_of_run(
        opened,
        run,
        values,
        step=step,
        capability=capability,
        device=device,
        progress=bar.tell if bar else lambda done, total: None,
    )
    if bar:
        bar.close()
    result = found.result()
    tables = sorted(found.path.glob("*.parquet"))
    if json:
        print_json({**result.to_json(), "tables": {file.stem: str(file) for file in tables}, "run": found.name})
        return
    print_result(f"spectrum of {run.name}", result, tables)


class _Bar:
    """A progress bar on standard error, made once it is known how much there is."""

    def __init__(self) -> None:
        self._bar: Any = None

    def tell(self, done: int, total: int) -> None:
        """`done` products of about `total`."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, unit="product", file=sys.stderr, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave its last line."""
        if self._bar is not None:
            self._bar.close()
            seconds = self._bar.format_dict["elapsed"]
            sys.stderr.write(f"{self._bar.n} products in {human_seconds(seconds)}\n")
