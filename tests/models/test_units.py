"""Units of every kind: removed as surgery on the weights would, and put back to the last bit."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import UserError
from workbench.models.anatomy import anatomy, blocks, matrix
from workbench.models.fingerprint import check_unchanged
from workbench.models.units import KINDS, SITES, units_of

TOKENS = torch.randint(0, 20, (5, 9), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def zero_by_hand(model, units, number):
    """A copy without one unit, by its coordinates alone."""
    twin = copy.deepcopy(model)
    row = units.table(torch.tensor([number])).iloc[0]
    block, sites = blocks(twin)[int(row["block"])], anatomy(twin)
    with torch.no_grad():
        if units.word == "neurons":
            for path in sites.mlp_in:
                matrix(block.get_submodule(path))[row["neuron"]] = 0
            bias = block.get_submodule(sites.mlp_in[0]).bias
            if bias is not None:
                bias[row["neuron"]] = 0
            matrix(block.get_submodule(sites.mlp_out))[:, row["neuron"]] = 0
        elif units.word == "heads":
            width = 16 // twin.config.num_attention_heads
            matrix(block.get_submodule(sites.attention_out))[:, width * row["head"] : width * (row["head"] + 1)] = 0
        elif units.word == "rows":
            matrix(block.get_submodule(row["matrix"]))[row["row"]] = 0
        else:
            matrix(block.get_submodule(row["matrix"]))[row["row"], row["column"]] = 0
    return twin


@pytest.mark.parametrize(
    ("kind", "gpt2", "llama"),
    [
        ("neurons", 2 * 24, 2 * 24),
        ("heads", 2 * 2, 2 * 2),
        ("rows:mlp_in", 2 * 24, 2 * 2 * 24),  # a gated MLP has two rows for a neuron
        ("rows:attention_in", 2 * 48, 2 * 3 * 16),
        ("rows", 2 * (48 + 16 + 24 + 16), 2 * (48 + 16 + 48 + 16)),
        ("weights:mlp_out", 2 * 16 * 24, 2 * 16 * 24),
        ("weights", 2 * (48 * 16 + 16 * 16 + 2 * 24 * 16), 2 * (48 * 16 + 16 * 16 + 3 * 24 * 16)),
    ],
)
def test_how_many_units_there_are(make_model, kind, gpt2, llama):
    for name, count in (("gpt2", gpt2), ("llama", llama)):
        units = units_of(make_model(name), kind)
        assert len(units) == len(units.table()) == count
        assert list(units.table()["unit"]) == list(range(count))
        assert not units.table().drop(columns="unit").duplicated().any()


def test_heads_that_share_keys_are_counted_by_their_queries(make_grouped):
    assert len(units_of(make_grouped(), "heads")) == 8
    assert len(units_of(make_grouped(), "rows:attention_in")) == 2 * (16 + 8 + 8)


@pytest.mark.parametrize("units_kind", ["neurons", "heads", "rows", "rows:mlp_in", "weights", "weights:attention_out"])
def test_a_removed_unit_is_one_whose_weights_are_zero(make_model, kind, units_kind):
    model = make_model(kind, dtype=torch.float64)
    units, plain = units_of(model, units_kind), logits(model)
    for number in (0, len(units) // 2, len(units) - 1):
        with units.removed(model, torch.tensor([number])):
            without = logits(model)
        assert torch.allclose(without, logits(zero_by_hand(model, units, number)), atol=1e-12)
        assert not torch.equal(without, plain)


def test_a_head_of_a_grouped_model_is_removed_alone(make_grouped):
    model = make_grouped(torch.float64)
    units = units_of(model, "heads")
    with units.removed(model, torch.tensor([5])):
        assert torch.allclose(logits(model), logits(zero_by_hand(model, units, 5)), atol=1e-12)


@pytest.mark.parametrize("units_kind", ["neurons", "heads", "rows", "weights"])
def test_every_bit_and_hook_is_as_before_also_after_an_exception(make_model, kind, units_kind):
    model = make_model(kind)
    with torch.no_grad():  # bits that arithmetic does not keep
        matrix(blocks(model)[0].get_submodule(anatomy(model).mlp_out))[0, :2] = torch.tensor([-0.0, 1e-42])
    before = {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}
    units = units_of(model, units_kind)

    def fail():
        with units.removed(model, torch.arange(len(units))):
            raise KeyError

    with check_unchanged(model):
        with units.removed(model, torch.arange(0, len(units), 3)):
            logits(model)
        with pytest.raises(KeyError):
            fail()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.int32), before[name])
    assert model.training is False


def test_removing_none_adds_no_hook(make_model):
    model = make_model()
    with units_of(model).removed(model, torch.empty(0, dtype=torch.long)):
        assert not any(m._forward_pre_hooks for m in model.modules())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 40), kind=st.sampled_from(["neurons", "heads", "rows", "weights"]))
def test_the_first_block_is_the_smallest_of_the_coordinates(make_model, seed, count, kind):
    units = units_of(make_model(blocks=3), kind)
    chosen = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))[:count]
    found = units.table(chosen)["block"]
    assert units.first_block(chosen) == (found.min() if len(found) else 3)


def test_sums_over_a_unit_are_over_its_own_weights(make_model, kind):
    model = make_model(kind)
    for units_kind in ("neurons", "heads", "rows", "weights"):
        units = units_of(model, units_kind)
        modules = units.modules(model)
        norms = torch.cat([units.sums(p, matrix(m).square()) for p, m in zip(units.parts, modules, strict=True)]).detach()
        assert len(norms) == len(units)
        for number in (0, len(units) - 1):
            twin = zero_by_hand(model, units, number)
            lost = sum(
                (matrix(a).square().sum() - matrix(b).square().sum()).item()
                for a, b in zip(dict.fromkeys(modules), dict.fromkeys(units.modules(twin)), strict=True)
            )
            assert norms[number].item() == pytest.approx(lost, rel=1e-3, abs=1e-5)


def test_the_sites_are_those_of_the_table(make_model):
    assert all(hasattr(anatomy(make_model()), site) for site in SITES)
    assert {kind.partition(":")[2] for kind in KINDS} == {"", *SITES}


def test_an_unknown_kind_is_refused(make_model):
    with pytest.raises(UserError, match="there are no units 'neuron'; did you mean 'neurons'"):
        units_of(make_model(), "neuron")
