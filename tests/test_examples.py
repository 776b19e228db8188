"""Examples: rows and devices take everything along; correlations refuse what no text can have."""

from dataclasses import replace

import pytest
import torch

from workbench.errors import UserError
from workbench.examples import Capability, Correlation, Examples, partners, sha256


@pytest.fixture
def full(random_examples) -> Examples:
    """Examples in which every field is filled and every row differs from the others."""
    plain = random_examples(n=6, padded=True)
    column = torch.arange(6)
    return replace(
        plain,
        labels={"count_a": column},
        token_labels={"depth": column[:, None].expand(6, 10)},
        roles={"window": plain.tokens > column[:, None]},
        chance={"majority": 0.25},
        counterfactual=random_examples(n=6, seed=1),
    )


def rows_of(examples, i):
    """Everything that belongs to row `i`, as plain lists."""
    own = [examples.tokens, examples.loss_mask, examples.answer_position, examples.answer, examples.attention_mask]
    mappings = (*examples.labels.values(), *examples.token_labels.values(), *examples.roles.values())
    other = [] if examples.counterfactual is None else rows_of(examples.counterfactual, i)
    return [t[i].tolist() for t in (*own, *mappings) if t is not None] + other


@pytest.mark.parametrize(
    ("rows", "picked"),
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(1, None, 2), [1, 3, 5]),
        (slice(0, 0), []),
        (torch.tensor([4, 0, 4]), [4, 0, 4]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
    ],
)
def test_rows_take_all_that_belongs_to_them_along(full, rows, picked):
    part = full[rows]
    assert len(part) == len(picked)
    assert [rows_of(part, i) for i in range(len(part))] == [rows_of(full, i) for i in picked]


def test_what_describes_the_whole_draw_stays(full):
    part = full[:2]
    assert torch.equal(part.candidates, full.candidates)
    assert part.chance == {"majority": 0.25}


def test_absent_parts_stay_absent(random_examples):
    part = random_examples()[1:3]
    assert part.attention_mask is None
    assert part.counterfactual is None
    assert dict(part.labels) == dict(part.roles) == dict(part.token_labels) == {}


def test_moving_takes_every_tensor_along(full):
    """`meta` stands for any other device."""
    moved = full.to("meta")
    tensors = [moved.tokens, moved.loss_mask, moved.answer_position, moved.answer, moved.candidates, moved.attention_mask]
    tensors += [*moved.labels.values(), *moved.token_labels.values(), *moved.roles.values(), moved.counterfactual.answer]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.chance == {"majority": 0.25}
    assert full.tokens.device.type == "cpu"


def test_examples_cannot_be_changed_in_place(random_examples):
    with pytest.raises(AttributeError):
        random_examples().tokens = None
    with pytest.raises(TypeError):
        random_examples().labels["a"] = torch.zeros(6)


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_is_a_probability(share):
    with pytest.raises(UserError, match=rf"correlation share {share} is outside \[0, 1\]"):
        Correlation("count_b", "count_a", 1, share)


def test_a_correlation_with_itself_says_nothing():
    with pytest.raises(UserError, match="'count_a' with itself says nothing"):
        Correlation("count_a", "count_a")


def test_the_same_relation_at_another_share():
    train = Correlation("count_b", "count_a", 2, 1.0)
    assert train.at(0.0) == Correlation("count_b", "count_a", 2, 0.0)
    assert train.share == 1.0
    with pytest.raises(UserError):
        train.at(2)


def test_what_has_a_name_and_examples_is_a_capability():
    class Own:
        name = "own"

        def examples(self, n, seed, split="test"): ...

    assert isinstance(Own(), Capability)
    assert not isinstance(object(), Capability)


def test_the_hash_knows_what_is_shown_and_asked(random_examples):
    same = random_examples(n=6)
    assert sha256(random_examples(n=6)) == sha256(same)
    changed = [
        replace(same, tokens=same.tokens + 1),
        replace(same, loss_mask=~same.loss_mask),
        replace(same, answer=same.answer + 1),
        replace(same, answer_position=same.answer_position - 1),
        same[:5],
    ]
    assert len({sha256(examples) for examples in (same, *changed)}) == 6


def test_partners_have_another_answer_and_the_same_layout(random_examples):
    examples = random_examples(n=40, padded=True)
    other = partners(examples, 0)
    assert (other.answer != examples.answer).all()
    assert other.answer_position.equal(examples.answer_position)
    assert other.attention_mask.equal(examples.attention_mask)
    assert other.tokens.equal(partners(examples, 0).tokens)
    assert not other.tokens.equal(partners(examples, 1).tokens)


def test_an_example_without_a_partner_is_named(random_examples):
    examples = random_examples(n=5)
    alone = replace(examples, answer_position=torch.tensor([3, 3, 3, 7, 3]), answer=torch.tensor([[1], [2], [2], [1], [2]]))
    with pytest.raises(UserError, match=r"1 of 5 examples \(the first is number 3\) have no other one of the same layout"):
        partners(alone, 0)
