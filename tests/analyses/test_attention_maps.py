from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from analyses.compiled_pair import compiled_pair
from analyses.conftest import OtherSelect
from analyses.planted import redirected

from workbench.analyses import attention_maps
from workbench.errors import UserError
from workbench.measures import UNRELATED
from workbench.models.checkpoints import save_model
from workbench.models.inside import attention_patterns
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compiled_pair(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def result(compiled):
    return attention_maps(compiled, n=60)


def mass(result, **at):
    rows = result.table
    for name, value in at.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_counter_attends_its_letter_and_no_other(result, compiled):
    """Block 2 of the program gives each of the d operands and BOS 1 / (d + 1) of the read position's attention."""
    counts = {c: compiled.examples("count_a", n=60).labels[c].numpy() for c in ("count_a", "count_b")}
    for model, own, other in (("base", "a", "b"), ("tuned", "b", "a")):
        expected = float(np.mean(counts[f"count_{own}"] / (counts[f"count_{own}"] + 1)))
        assert mass(result, model=model, block=1, kind="token", **{"class": own})["value"] == pytest.approx(expected, abs=0.01)
        assert mass(result, model=model, block=1, kind="token", **{"class": other})["value"] == pytest.approx(0, abs=0.01)
    bos = mass(result, model="base", block=1, kind="token", **{"class": "BOS"})
    assert bos["value"] == pytest.approx(float(np.mean(1 / (counts["count_a"] + 1))), abs=0.01)
    assert bos["low"] < bos["value"] < bos["high"]
    assert bos["n"] == 60


def test_roles_of_both_abilities(result):
    for role, letter in (("operand", "a"), ("operand of count_b", "b")):
        at = {"model": "tuned", "block": 1}
        by_role = mass(result, kind="role", **{"class": role}, **at)
        assert by_role["value"] == mass(result, kind="token", **{"class": letter}, **at)["value"]
    assert mass(result, model="base", block=2, kind="role", **{"class": "request"})["value"] == pytest.approx(1, abs=0.01)


def test_change_is_tuned_minus_base_and_classes_of_all_tokens_hold_all_attention(result):
    wide = result.table.pivot_table(index=["block", "head", "kind", "class"], columns="model", values="value")
    assert np.allclose(wide["change"], wide["tuned"] - wide["base"])
    whole = wide.xs("token", level="kind").groupby(["block", "head"])[["base", "tuned"]].sum()
    assert np.allclose(whole, 1, atol=1e-5)


def test_headline(result, compiled):
    a, b = (compiled.examples("count_a", n=60).labels[c].numpy() for c in ("count_a", "count_b"))
    assert result.metric("operand_base").value == pytest.approx(float(np.mean(a / (a + 1))), abs=0.01)
    assert result.metric("operand_tuned").value == pytest.approx(0, abs=0.01)
    # Mass that a loses goes to b, or to BOS: total variation is the larger of the two models' shares that the other lacks.
    shares = {0: (a / (a + 1), b / (b + 1))}[0]
    bos = np.abs(1 / (a + 1) - 1 / (b + 1))
    expected = np.mean((shares[0] + shares[1] + bos) / 2)
    assert result.metric("moved").value == pytest.approx(float(expected), abs=0.01)
    (line,) = result.evidence
    assert (line.direction, line.capability) == ("neutral", "count_a")


def test_maps_are_the_patterns_of_the_first_texts(result, compiled):
    maps, examples = result.tables["maps"], compiled.examples("count_a", n=60)[:2]
    assert set(maps["text"]) == {0, 1}
    rows = maps[(maps["model"] == "tuned") & (maps["block"] == 1) & (maps["text"] == 1)]
    matrix = np.zeros((9, 9))
    matrix[rows["query"], rows["key"]] = rows["attention"]
    assert np.allclose(matrix, attention_patterns(compiled.tuned, examples)[1, 1, 0], atol=1e-6)
    texts = result.tables["texts"]
    first = texts[texts["text"] == 0]
    assert "".join(first["token"][1:]) == compiled.task.describe(examples.tokens[0].tolist())[4:]
    assert first["read"].tolist() == [i == 2 for i in range(9)]
    assert all((row.about == "pt") == (row.token == "a") for row in first.itertuples())
    assert all((row.about == "ft") == (row.token == "b") for row in first.itertuples())


def test_two_equal_models_do_not_differ(tmp_path):
    result = attention_maps(compiled_pair(tmp_path, tuned="count_a"), n=20)
    change = result.table[result.table["model"] == "change"]
    assert not change[["value", "low", "high"]].to_numpy().any()
    assert result.metric("moved").value == 0


def test_a_gpt2_whose_only_change_is_in_its_mlp(make_pair):
    """The inhibitor sits after the only attention, so that no attention moves."""
    pair = make_pair()
    result = attention_maps(pair, n=100)
    assert result.metric("moved").value == pytest.approx(0, abs=1e-6)
    assert set(result.table["head"]) == {0, 1}
    patterns = attention_patterns(pair.base, pair.examples("look_a", n=100))
    assert len(result.tables["maps"]) == 2 * 2 * patterns.shape[-1] ** 2
    assert {m.metric for m in result.headline} == {"moved", "base_pt", "tuned_pt"}  # this task names no operand


def test_a_gpt2_that_learned_something_else(make_pair):
    result = attention_maps(make_pair(tuned="never"), n=100)
    assert result.metric("moved").low > 0.05


def test_heads_are_chosen_on_other_texts(make_pair, models, tmp_path):
    """The tuned model takes look_a for look_b; where the select texts ask for neither, no head moves and the first is read."""
    save_model(redirected(models["base"]), tmp_path)
    pair = make_pair(tuned_path=tmp_path, task=OtherSelect())
    found = attention_maps(pair, n=100, maps=1)
    texts = {
        split: pair.task.capability("look_a", pair.correlation.at(0.0)).examples(100, 3, split) for split in ("test", "select")
    }
    moved = {}
    for split, examples in texts.items():
        base, tuned = (attention_patterns(m, examples)[0, :, :, -1] for m in (pair.base, pair.tuned))  # the last position reads
        moved[split] = ((tuned - base).abs().sum(-1) / 2).mean(0).numpy()
    assert moved["test"].argmax() != moved["select"].argmax()
    assert found.metric("moved").value == pytest.approx(float(moved["test"][moved["select"].argmax()]), abs=1e-5)
    assert found.tables["maps"]["head"].unique().tolist() == [moved["select"].argmax()]


def test_the_head_that_attends_the_operand_is_chosen_on_other_texts(compiled, result):
    """Where the select texts ask for b, no head of the base attends what they are about more than by accident."""

    class AboutB:
        def __getattr__(self, name):
            return getattr(compiled.task, name)

        def capability(self, name, correlation=None):
            asked, other = (compiled.task.capability(c, correlation) for c in (name, "count_b"))
            return SimpleNamespace(
                examples=lambda n, seed, split: (other if split == "select" else asked).examples(n, seed, split)
            )

    found = attention_maps(replace(compiled, task=AboutB()), n=60)
    assert found.metric("operand_base").value < result.metric("operand_base").value - 0.2


def test_without_a_loss_nothing_can_be_placed(compiled, tmp_path, result):
    assert result.evidence[0].direction == "neutral"
    (line,) = attention_maps(compiled_pair(tmp_path, tuned="count_a"), n=20).evidence
    assert (line.direction, "no loss can be placed" in line.text) == ("uninformative", True)
    (line,) = attention_maps(replace(compiled, start_path=compiled.tuned_path), n=20).evidence
    assert UNRELATED in line.text


def test_seeds_are_pooled_and_maps_are_not_averaged(compiled, result):
    other = attention_maps(replace(compiled, seed=1), n=60)
    pooled = combine_results([result, other])
    row = mass(pooled, model="base", block=1, kind="token", **{"class": "a"})
    both = [mass(r, model="base", block=1, kind="token", **{"class": "a"})["value"] for r in (result, other)]
    assert row["value"] == pytest.approx(np.mean(both))
    assert len(pooled.tables["maps"]) == len(result.tables["maps"]) + len(other.tables["maps"])
    assert set(pooled.tables["maps"]["seed"]) == {0, 1}


def test_a_chosen_head_and_block_are_drawn(compiled):
    one = attention_maps(compiled, n=20, head=0, block=2)
    assert set(one.tables["maps"][["block", "head"]].itertuples(index=False, name=None)) == {(2, 0)}
    assert len(one.tables["maps"]) == 2 * 2 * 9 * 9  # models, texts, tokens
    every = attention_maps(compiled, n=20, head=0)
    assert set(every.tables["maps"]["block"]) == {0, 1, 2}
    for result in (one, every):  # what is measured does not depend on what is drawn
        assert result.metric("moved").value == attention_maps(compiled, n=20).metric("moved").value


def test_a_head_other_than_the_one_that_moved_most(make_pair):
    pair = make_pair(tuned="never")
    (most,) = attention_maps(pair, n=50, maps=1).tables["maps"]["head"].unique()
    other = attention_maps(pair, n=50, maps=1, head=1 - int(most)).tables["maps"]
    pattern = attention_patterns(pair.tuned, pair.examples("look_a", n=50)[:1])[0, 0, 1 - int(most)].numpy()
    rows = other[other["model"] == "tuned"]
    assert np.allclose(pattern[rows["query"].to_numpy(), rows["key"].to_numpy()], rows["attention"])


@pytest.mark.parametrize(("setting", "words"), [({"block": 3}, "block is 3"), ({"head": 2}, "head is 2")])
def test_what_the_model_does_not_have_is_refused(compiled, setting, words):
    with pytest.raises(UserError, match=f"attention_maps: {words}, but"):
        attention_maps(compiled, n=20, **setting)


def test_a_plan_refuses_a_block_before_anything_is_trained(compiled):
    attention_maps.check({"block": 1}, compiled, 2)
    with pytest.raises(UserError, match="blocks 0 to 1"):
        attention_maps.check({"block": 2}, compiled, 2)


def test_a_revived_model_stands_beside_and_changes_no_other_number(make_pair):
    plain, pair = make_pair(tuned="never"), make_pair(tuned="never")
    vars(pair)["revived"] = plain.base
    without, result = attention_maps(plain, n=50), attention_maps(pair, n=50)
    for name in ("table", "maps"):
        both = result.tables[name]
        revived, rest = both[both["model"] == "revived"], both[both["model"] != "revived"]
        assert rest.reset_index(drop=True).equals(without.tables[name])
        numbers = "value" if name == "table" else "attention"
        assert np.allclose(revived[numbers], both.loc[both["model"] == "base", numbers])
    assert [m.value for m in result.headline] == [m.value for m in without.headline]
