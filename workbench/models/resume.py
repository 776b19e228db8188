"""Running a model from one of its blocks on: what came before a change is computed once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.anatomy import blocks


@contextmanager
def block_inputs(model: nn.Module) -> Generator[list[Float[Tensor, "n t d"]]]:
    """A list that a forward pass inside the context fills with the input of every block, in order."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    with ExitStack() as stack:
        for block in blocks(model):
            stack.callback(block.register_forward_pre_hook(keep).remove)
        yield seen


@contextmanager
def resumed(model: nn.Module, block: int, hidden: Float[Tensor, "n t d"]) -> Generator[None]:
    """Forward passes begin at `block` with `hidden` as its input while the context is open; earlier blocks do not run.

    The tokens of such a pass must be those that `hidden` belongs to: they give the positions and the mask.
    """

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden, *inputs[1:])

    def skip(states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states

    with ExitStack() as stack:
        for earlier in blocks(model)[:block]:
            vars(earlier)["forward"] = skip  # before the class's own, until it is taken away again
            stack.callback(vars(earlier).pop, "forward")
        stack.callback(blocks(model)[block].register_forward_pre_hook(begin).remove)
        yield
