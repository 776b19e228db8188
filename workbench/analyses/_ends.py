"""The models at the two ends of an update."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from workbench.models.checkpoints import load_model
from workbench.models.matrices import check_alike
from workbench.subjects import Pair


@dataclass(frozen=True)
class Update:
    """A step of training as a whole: from one model to another of the same shape."""

    name: str
    """`tuned`: the fine-tuning; `revived`: the reverse fine-tuning of the tuned model; `never_had_it`: the same of the control."""
    before: PreTrainedModel
    after: PreTrainedModel


def updates(pair: Pair) -> list[Update]:
    """Fine-tuning and, where the pair has these arms, what reverse fine-tuning did to the tuned and to the control model.

    Raises:
        UserError: models of an update differ in shape.
    """
    found = [Update("tuned", pair.start, pair.tuned)]
    if pair.revived is not None:
        found.append(Update("revived", pair.tuned, pair.revived))
    if "never_had_it" in pair.arms and pair.never_had_it is not None:
        taught = load_model(pair.arms["never_had_it"].run.checkpoint().path, pair.base.device)
        found.append(Update("never_had_it", pair.never_had_it, taught))
    for update in found:
        check_alike((pair.start, update.before, update.after), f"pair {pair.name!r}")
    return found
