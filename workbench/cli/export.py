"""`workbench export`: a pruned model as a folder of its own, really smaller, with what that saves."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Json, StorePath, human_bytes, print_json, print_table, say
from workbench.errors import UserError

KINDS = ("neurons", "heads")
TIMED = 64
"""Test texts in one timed forward pass."""
COMPARED = 256
"""Test texts, at most, on which the smaller model's logits are held against the masked one's."""


def export(
    target: Annotated[str, typer.Argument(metavar="STUDY:PAIR", help="A pair of a study of the store.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet, or be empty.")],
    units: Annotated[int, typer.Option(min=0, help="How many units to cut out of the fine-tuned model.")],
    kind: Annotated[str, typer.Option(help="What to cut out: neurons or heads.")] = "neurons",
    score: Annotated[str, typer.Option(help="How units are ranked, as in the analysis `pruning`.")] = "signed_taylor",
    seed: Annotated[int | None, typer.Option(help="Seed of the pair; the study's first when absent.")] = None,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Cut the first units of a ranking out of a pair's fine-tuned model and save what is left; print size and speed."""
    from workbench.cli.study import known_study

    study_name, _, name = target.partition(":")
    if not name:
        raise UserError(f"{target!r} names no pair; write study:pair, such as quickstart:wrapped.")
    if kind not in KINDS:
        raise UserError(f"--kind {kind!r} cannot be cut out; choose one of {', '.join(KINDS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; give a new one with --out.")
    pair = known_study(study_name, store).pair(name, seed)

    import torch

    from workbench.analyses.pruning import PruningSettings, pruning, request
    from workbench.measures import correct_answers, shares
    from workbench.models.checkpoints import save_model
    from workbench.models.fingerprint import weights_sha256
    from workbench.models.forward import answer_logits
    from workbench.models.scores import order_of, score_units
    from workbench.models.shrink import costs, shrink
    from workbench.models.units import units_of

    chosen: PruningSettings = pruning.settings({"score": score, "units": kind})
    model, all_units = pair.tuned, units_of(pair.tuned, kind)
    if units > len(all_units):
        raise UserError(f"--units {units} is more than the {len(all_units)} {kind} of the model; give at most so many.")
    ranked = order_of(score, score_units(score, request(pair, all_units, chosen.score_examples, chosen.probes)))
    removed, none = ranked[:units], ranked[:0]
    small = shrink(model, *((removed, none) if kind == "neurons" else (none, removed)))

    texts = pair.examples(pair.capability)
    some = texts[:COMPARED].to(model.device)
    with torch.no_grad(), all_units.removed(model, removed):
        gap = (answer_logits(model, some) - answer_logits(small, some)).abs().max().item()
    before, after = costs([model, small], texts.tokens[:TIMED])
    accuracies = {
        capability: [float(correct_answers(m, pair.examples(capability, share=share)).mean()) for m in (model, small)]
        for capability, share in ((pair.capability, 0.0), (pair.tuned_on, shares(pair, pair.tuned_on)[-1]))
    }
    body: dict[str, Any] = {
        "pair": f"{study_name}:{name}",
        "seed": pair.seed,
        "score": score,
        "kind": kind,
        "removed": all_units.table(removed).drop(columns="unit").to_numpy().tolist(),
        "of": len(all_units),
        "tuned_sha256": weights_sha256(model),
        "out": str(out),
        "before": asdict(before),
        "after": asdict(after),
        "n": len(texts),
        "accuracy": {k: {"before": b, "after": a} for k, (b, a) in accuracies.items()},
        "largest_logit_gap": gap,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_model(small, out)
    (out / "export.json").write_text(json_text.dumps(body, indent=1))
    if json:
        print_json(body)
        return
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("size", human_bytes(before.bytes), human_bytes(after.bytes)),
        (f"forward pass of {before.tokens:,} tokens", f"{before.milliseconds:.1f} ms", f"{after.milliseconds:.1f} ms"),
        *((f"accuracy of {k} (n = {len(texts):,})", f"{b:.3f}", f"{a:.3f}") for k, (b, a) in accuracies.items()),
    ]
    print_table(f"{units} of {len(all_units)} {kind} cut out ({score})", ("", "before", "after"), rows)
    say(f"logits differ by at most {gap:.1e} from those with the {kind} masked")
    say(f"wrote {out}; open it with workbench.load_model({str(out)!r})")
