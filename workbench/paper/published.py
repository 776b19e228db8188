"""The paper's own numbers [Jain+23 Tab 3-8], in the terms of a grid study; another model and scale, so marks beside ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pandas as pd

from workbench.errors import UserError, did_you_mean
from workbench.paper.grid import PRIORS as PRIORS_BY_SCALE
from workbench.paper.grid import RATES

PRIORS = PRIORS_BY_SCALE["paper"]


def names() -> tuple[str, ...]:
    """Published tables, such as `table5_counter_200K`."""
    found = (entry.name for entry in files("workbench.paper").joinpath("tables").iterdir())
    return tuple(sorted(name.removesuffix(".csv") for name in found if name.endswith(".csv")))


def read(name: str) -> pd.DataFrame:
    """A published table as printed, in per cent.

    Raises:
        UserError: there is no such table.
    """
    if name not in names():
        raise UserError(f"there is no published table {name!r}{did_you_mean(name, names())}")
    with files("workbench.paper").joinpath("tables").joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"eta": str})


def accuracies(name: str) -> pd.DataFrame:
    """Tables 5-8, long: `rate_name prior c_tr role share its value`, values as shares of one; `its` 0 is the pretrained model."""
    frame = read(name)
    rates = sorted({float(eta) for eta in frame["eta"]}, reverse=True)
    rows: list[dict[str, Any]] = []
    for record in frame.to_dict("records"):
        place = {"rate_name": RATES[rates.index(float(record["eta"]))], "prior": record["P_T(a)"], "c_tr": record["C_Tr"]}
        for column, value in record.items():
            found = re.fullmatch(r"acc(OPT|OFT)_(?:Cte([01])_(\d+)K|(pretrained))", str(column))
            if found is None:
                continue
            role = {"OPT": "pt", "OFT": "ft"}[found[1]]
            for share in (0.0, 1.0) if found[4] else (float(found[2]),):
                its = 0 if found[4] else 1000 * int(found[3])
                rows.append({**place, "role": role, "share": share, "its": its, "value": value / 100})
    return pd.DataFrame(rows)


def compiled(name: str, program: str) -> pd.DataFrame:
    """Table 3 of one program (`count` or `max`), long: `rate_name c_tr role share its value`."""
    frame = read(name)
    rates = sorted({float(eta) for eta in frame["eta"]}, reverse=True)
    rows: list[dict[str, Any]] = []
    for record in frame.to_dict("records"):
        place = {"rate_name": RATES[rates.index(float(record["eta"]))], "c_tr": record["C_Tr"]}
        for column, value in record.items():
            found = re.fullmatch(rf"{program}_Cte([01])_acc(OPT|OFT)", str(column))
            if found is not None:
                role = {"OPT": "pt", "OFT": "ft"}[found[2]]
                rows.append({**place, "role": role, "share": float(found[1]), "its": 10_000, "value": value / 100})
    return pd.DataFrame(rows)


def pretrain_steps(name: str) -> int:
    """Length of the pretraining behind one of the tables 5-8: 200,000 for `table5_counter_200K`."""
    found = re.search(r"_(\d+)K$", name)
    if found is None:
        raise UserError(f"the published table {name!r} is not one of pretrained models; take one of tables 5 to 8.")
    return 1000 * int(found[1])


def nearest_priors(priors: Sequence[float], same_scale: bool = False) -> dict[float, float]:
    """Which published prior each of a study's priors stands for; those that stand for none are left out.

    .9 and .5 stand for themselves. At a small scale the lowest prior of .99 or more stands for the paper's .999, since it
    behaves as that does: the operand is seen too rarely to be learned. At the paper's own scale .999 stands for itself.
    """
    if same_scale:
        return {prior: prior for prior in priors if prior in PRIORS.values()}
    known = {0.9: 0.9, 0.5: 0.5}
    low = [prior for prior in priors if prior >= 0.99]
    return {**{p: known[p] for p in priors if p in known}, **({min(low): PRIORS["low"]} if low else {})}
