"""Kinds and their settings: what was written before means what it meant, and each kind takes its own settings alone."""

import hashlib
import inspect
import json

import pytest
from pydantic import ValidationError

from workbench.optimizers.build import RULES
from workbench.optimizers.spec import KINDS, OptimizerSpec

BEFORE = [
    ({}, '{"kind": "adamw", "betas": [0.9, 0.95], "momentum": 0.9, "weight_decay": 0.0}'),
    ({"kind": "sgd"}, '{"kind": "sgd", "betas": [0.9, 0.95], "momentum": 0.9, "weight_decay": 0.0}'),
    ({"weight_decay": 0.01}, '{"kind": "adamw", "betas": [0.9, 0.95], "momentum": 0.9, "weight_decay": 0.01}'),
    (
        {"kind": "sgd", "momentum": 0, "betas": [0.5, 0.6]},
        '{"kind": "sgd", "betas": [0.5, 0.6], "momentum": 0.0, "weight_decay": 0.0}',
    ),
]
"""Specs, and what they gave to the keys of stages when there were two kinds."""


@pytest.mark.parametrize(("said", "kept"), BEFORE)
def test_old_kinds_give_the_keys_what_they_gave(said, kept):
    assert json.dumps(OptimizerSpec(**said).model_dump(mode="json")) == kept
    assert OptimizerSpec(**json.loads(kept)) == OptimizerSpec(**said)


@pytest.mark.parametrize("kind", [*KINDS, "zoo:Lion"])
def test_a_spec_is_its_own_settings_and_reads_back(kind):
    body = OptimizerSpec(kind=kind).model_dump(mode="json")
    assert set(body) == {"kind", *KINDS.get(kind, ("weight_decay", "settings"))}
    assert None not in body.values()
    assert OptimizerSpec(**json.loads(json.dumps(body))) == OptimizerSpec(kind=kind)


def test_what_is_not_said_is_the_kinds_own():
    assert OptimizerSpec(kind="adabelief").betas == (0.9, 0.999)
    assert OptimizerSpec(kind="muon").own == {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95)}
    assert OptimizerSpec(kind="frugal", density=None).density == 0.25
    assert OptimizerSpec(kind="frugal", density=0.5).own["density"] == 0.5


def test_the_kinds_own_are_the_defaults_of_the_rules():
    """Which are the authors'; but decay is off, and SGDP has the momentum without which it would be plain SGD."""
    for kind, rule in RULES.items():
        theirs = {name: p.default for name, p in inspect.signature(rule).parameters.items()}
        changed = {"weight_decay": 0.0, **({"momentum": 0.9} if kind == "sgdp" else {})}
        assert {**KINDS[kind]} == {name: changed.get(name, theirs[name]) for name in KINDS[kind]}


def test_every_setting_is_in_the_key():
    other = {
        "betas": (0.7, 0.8),
        "version": "v1",
        "projection": "svd",
        "inactive": "no",
        "block_order": "ascending",
        "settings": {"a": 1},
    }
    hashes = set()
    for kind, own in {**KINDS, "zoo:Lion": {"weight_decay": 0.0, "settings": {}}}.items():
        whole = [{}]
        for name, value in own.items():
            moved = other.get(name, not value if isinstance(value, bool) else 7 if isinstance(value, int) else 0.31)
            whole.append({name: moved})
        for said in whole:
            body = OptimizerSpec(kind=kind, **said).model_dump(mode="json")
            hashes.add(hashlib.sha256(json.dumps(body).encode()).hexdigest())
    assert len(hashes) == sum(1 + len(own) for own in KINDS.values()) + 3


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"kind": "adabelif"}, "there is no optimizer 'adabelif'; did you mean 'adabelief'"),
        ({"kind": "lion"}, r"there is no optimizer 'lion'; known: .+\(zoo:NAME is one of pytorch-optimizer\)"),
        ({"kind": "zoo:"}, "there is no optimizer 'zoo:'"),
        ({"kind": "diffgrad", "momentum": 0.9}, "optimizer 'diffgrad' has no setting 'momentum'; known: betas, eps"),
        ({"eps": 1e-6}, "optimizer 'adamw' has no setting 'eps'; known: betas, momentum, weight_decay"),
        ({"kind": "frugal", "density": 1.1}, "less than or equal to 1"),
        ({"kind": "sgdp", "dampening": 1}, "less than 1"),
        ({"kind": "adagrad_norm", "weight_decay": 0.1}, "optimizer 'adagrad_norm' has no setting 'weight_decay'"),
        ({"kind": "sgld", "inverse_temperature": float("inf")}, "finite"),
        (
            {"kind": "zoo:Lion", "betas": [0.9, 0.99]},
            "optimizer 'zoo:Lion' has no setting 'betas'; known: settings, weight_decay",
        ),
        ({"kind": 5}, "valid string"),
        ({"kind": "frugal", "densty": 1}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_sentence(bad, sentence):
    with pytest.raises(ValidationError, match=sentence) as caught:
        OptimizerSpec(**bad)
    assert caught.value.error_count() == 1
