"""Running an optimizer on the problem of a recorded file."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent / "reference"
FILES = sorted(path.stem.removesuffix("_seed0") for path in FOLDER.glob("*.npz"))


@cache
def recorded(name):
    with np.load(FOLDER / f"{name}_seed0.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def problem(name, dtype=torch.float64):
    """`(parameters in order, loss)`."""
    file = recorded(name)
    order = [str(n) for n in file["param_order"]]
    ps = {n: torch.nn.Parameter(torch.tensor(file[f"init.{n}"], dtype=dtype)) for n in order}
    x, y = torch.tensor(file["X"], dtype=dtype), torch.tensor(file["y"])

    def loss():
        if "rownorm" in name:
            (w,) = ps.values()
            return ((x @ (w / w.norm(dim=1, keepdim=True)).T - y.to(dtype)) ** 2).mean()
        hidden = F.linear(x, ps["0.weight"], ps["0.bias"])
        hidden = torch.tanh(F.layer_norm(hidden, (16,), ps["1.weight"], ps["1.bias"]))
        return F.cross_entropy(F.linear(hidden, ps["3.weight"], ps["3.bias"]), y)

    return ps, loss


def trajectory(name, make, steps, dtype=torch.float64, set_to_none=True):
    """Parameters after each of `steps`, as `{step: {name: values}}`."""
    ps, loss = problem(name, dtype)
    optimizer, found = make(list(ps.values())), {}
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss().backward()
        optimizer.step()
        if step in steps:
            found[step] = {n: p.detach().clone() for n, p in ps.items()}
    return found


def apart(name, found):
    """The largest difference from the file, over all steps in `found`."""
    file = recorded(name)
    return max(
        float((values.double() - torch.tensor(file[f"step{step}.{n}"])).abs().max())
        for step, parameters in found.items()
        for n, values in parameters.items()
    )


def meta(name):
    return json.loads(str(recorded(name)["meta"]))
