"""A model's specification: its parameter count, and what it refuses."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.models.build import build_model
from workbench.models.spec import ModelSpec


@given(
    kind=st.sampled_from(["gpt2", "llama"]),
    blocks=st.integers(1, 3),
    heads=st.integers(1, 3),
    head=st.integers(1, 5),
    mlp=st.none() | st.integers(1, 33),
    vocab=st.integers(1, 41),
    context=st.integers(1, 19),
)
@settings(max_examples=25, deadline=None)
def test_the_formula_counts_what_is_built(kind, blocks, heads, head, mlp, vocab, context):
    width = heads * head * (2 if kind == "llama" else 1)
    spec = ModelSpec(kind=kind, blocks=blocks, heads=heads, width=width, mlp_width=mlp)
    built = build_model(spec, vocab, context, 0)
    assert spec.parameters(vocab, context) == sum(p.numel() for p in built.parameters())


def test_hidden_neurons_are_four_times_the_width_unless_given():
    assert ModelSpec(width=12, heads=3).hidden == 48
    assert ModelSpec(width=12, heads=3, mlp_width=5).hidden == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4; choose a width such as 64"),
        ({"kind": "llama", "width": 12, "heads": 4}, "heads of 3, and rotary positions need an even number"),
        ({"blocks": 0}, "greater than or equal to 1"),
        ({"kind": "rnn"}, "'gpt2', 'llama', 'compiled' or 'checkpoint'"),
        ({"kind": "checkpoint"}, "a checkpoint has a path"),
        ({"kind": "checkpoint", "path": "x", "width": 32}, "a checkpoint model takes its size from its folder; remove width"),
        ({"sha256": "x"}, "sha256 is of a checkpoint, not of kind 'gpt2'"),
        ({"layers": 2}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_models_are_refused_before_they_are_built(given, says):
    with pytest.raises(ValidationError, match=says):
        ModelSpec(**given)


def test_what_is_written_of_a_spec_is_what_its_kind_has():
    """Stages are addressed by it: another kind's fields in it would make all runs anew."""
    assert list(ModelSpec().model_dump()) == ["kind", "blocks", "heads", "width", "mlp_width"]
    checkpoint = ModelSpec(kind="checkpoint", path="x", sha256="y")
    assert checkpoint.model_dump() == {"kind": "checkpoint", "path": "x", "sha256": "y"}
    assert ModelSpec(**checkpoint.model_dump()) == checkpoint


@pytest.mark.parametrize("module", ["workbench.models.spec", "workbench.optimizers.spec", "workbench.training.settings"])
def test_reading_a_specification_imports_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
