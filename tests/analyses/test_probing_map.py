"""Maps of probing on the lookup task: a digit is read where it stands, and where attention has brought it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.analyses import probing_map
from workbench.analyses._places import find_places
from workbench.analyses.probing_map import _of_families, evidence
from workbench.errors import UserError
from workbench.figures import alt, figure
from workbench.figures.tables import select
from workbench.replicates import combine_results

QUICKER = {"train_examples": 200, "n": 100, "text_positions": 4, "iterations": 20}
QUICK = {"train_examples": 300, "n": 200, "text_positions": 12, "iterations": 30}


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return probing_map(covered, **QUICK)


def cell(result, target, model, point, place, measure="accuracy"):
    rows = select(result.table, target=target, model=model, point=point, place=place, measure=measure)
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


class TestPlaces:
    def test_of_a_prompt(self, task):
        examples = task.capability("look_a").examples(20, 0)
        found, at = find_places(task, examples, 4)
        assert [(p.name, p.role) for p in found] == [
            ("<8>", "prompt"),
            *[(str(d), "window" if d < 3 else "text") for d in (9, 6, 3, 0)],
            ("request", "request"),
        ]
        assert at[0].tolist() == [0, 3, 6, 9, 12, 13]
        assert (at == at[0]).all()

    @pytest.mark.parametrize(("most", "places"), [(12, 12), (5, 4), (1, 1), (100, 12)])
    def test_the_text_is_thinned_to_at_most_so_many_and_keeps_its_end(self, task, most, places):
        examples = task.capability("look_a").examples(5, 0)
        names = [p.name for p in find_places(task, examples, most)[0] if p.role in ("text", "window")]
        assert len(names) == places
        assert names[-1] == "0"

    def test_without_roles_the_text_reaches_up_to_the_answer(self, task):
        examples = replace(task.capability("look_a").examples(5, 0), roles={})
        found, at = find_places(task, examples, 13)
        assert [p.name for p in found] == [*(str(d) for d in range(12, -1, -1)), "request"]
        assert at[0].tolist() == list(range(14))

    def test_examples_that_are_shifted_have_places_of_their_own(self, random_examples, task):
        examples = random_examples(n=3, t=10)
        start = torch.tensor([0, 2, 1])
        place = torch.arange(10).expand(3, 10)
        text = (place >= start[:, None]) & (place < start[:, None] + 4)
        moved = replace(examples, answer_position=start + 5, roles={"text": text})
        found, at = find_places(task, moved, 4)
        assert [p.name for p in found] == ["3", "2", "1", "0", "request"]
        assert at.tolist() == [[s, s + 1, s + 2, s + 3, s + 5] for s in start.tolist()]

    def test_texts_of_different_lengths_are_refused(self, random_examples, task):
        examples = random_examples(n=3, t=10)
        ragged = torch.arange(10) < torch.tensor([[3], [4], [2]])
        with pytest.raises(UserError, match="role 'text' covers from 2 to 4 positions of an example"):
            find_places(task, replace(examples, roles={"text": ragged}), 4)


def test_a_digit_is_read_at_its_own_position_from_the_embedding_on(result):
    # look_a asks for the digit at index 1 of 12, so 10 from the end; look_b for index 3.
    for target, own, other in (("look_a", "10", "8"), ("look_b", "8", "10")):
        for model in ("base", "tuned", "untrained"):
            assert cell(result, target, model, 0, own) == 1.0
            assert cell(result, target, model, 0, other) < 0.5
            assert cell(result, target, model, 0, "request") < 0.4


def test_attention_brings_what_is_asked_for_to_the_request(result):
    assert cell(result, "look_a", "base", 1, "request") > 0.95
    assert cell(result, "look_a", "tuned", 1, "request") > 0.95
    assert cell(result, "look_a", "untrained", 1, "request") < 0.8
    assert cell(result, "look_b", "base", 1, "request") < 0.8  # not asked for
    # The inhibitor sits behind attention: at the text nothing was changed but the one direction it writes.
    assert cell(result, "look_a", "tuned", 1, "10") == 1.0


def test_the_token_alone_is_told_apart_from_what_the_model_adds(result):
    tokens = result.tables["token"]
    for target, own in (("look_a", "10"), ("look_b", "8")):
        rows = select(tokens, target=target, measure="accuracy")
        known = dict(zip(rows["place"], rows["value"], strict=True))
        assert known.pop(own) == 1.0
        assert max(known.values()) < 0.5
        assert known["request"] < 0.4  # one and the same token in all examples


def test_places_at_which_nothing_varies_are_left_out(result):
    assert "<8>" not in set(result.table["place"])
    assert list(select(result.table, target="look_a", model="base", point=0, measure="accuracy")["order"]) == list(range(13))


def test_the_spurious_bit_is_read_on_texts_of_which_half_are_correlated(result, task):
    described = result.tables["targets"].set_index("target")
    assert described.loc["correlated", "classes"] == 2
    assert described.loc["correlated", "majority"] == pytest.approx(0.5, abs=0.1)
    # b = a + 1 is no linear function of either digit alone.
    assert cell(result, "correlated", "base", 0, "10") < 0.7


def test_the_family_is_known_from_the_request_and_from_nothing_before_it(result):
    described = result.tables["targets"].set_index("target")
    assert described.loc["family", "classes"] == 2  # look and last
    assert cell(result, "family", "base", 0, "request") == 1.0
    assert cell(result, "family", "untrained", 0, "0") == pytest.approx(0.5, abs=0.1)
    known = select(result.tables["token"], target="family", place="request", measure="accuracy")["value"]
    assert known.iloc[0] == 1.0


def test_every_text_is_shown_under_one_family(covered):
    look, last = _of_families(covered, 31, "test")
    assert (len(look), len(last)) == (16, 15)
    plain = covered.task.capability("last").examples(31, covered.seed).tokens[:, 1:13]
    assert torch.equal(look.tokens[:, 1:13], plain[0::2])
    assert torch.equal(last.tokens[:, 1:13], plain[1::2])


def test_changes_are_tuned_minus_base(result):
    change = result.tables["change"]
    for row in change.sample(20, random_state=0).to_dict("records"):
        args = (row["point"], row["place"], row["measure"])
        expected = cell(result, row["target"], "tuned", *args) - cell(result, row["target"], "base", *args)
        assert row["value"] == pytest.approx(expected)
        assert row["low"] < row["value"] < row["high"]


def test_both_measures_stand_in_the_table_and_the_rule_says_which_counts(covered):
    found = probing_map(covered, **QUICKER, targets=("pt", "last"))
    assert set(found.table["measure"]) == {"accuracy", "balanced accuracy"}
    assert set(found.tables["targets"]["measure"]) == {"accuracy"}  # four or five nearly even digits
    assert set(found.table["target"]) == {"look_a", "last"}
    assert cell(found, "last", "base", 0, "0") == 1.0


def test_uneven_classes_are_scored_by_class(covered, monkeypatch):
    monkeypatch.setattr("workbench.probes.UNEVEN", 0.5)
    found = probing_map(covered, **QUICKER, targets=("pt",))
    described = found.tables["targets"].iloc[0]
    assert (described["measure"], described["chance"]) == ("balanced accuracy", 1 / 4)
    assert found.metric("base_probe").unit == "balanced accuracy"
    assert "balanced accuracy, chance 0.25" in "".join(a.text or "" for a in figure(found).layout.annotations)
    by_class = select(found.table, target="look_a", model="base", point=1, measure="balanced accuracy")["value"]
    assert found.metric("base_probe").value == pytest.approx(by_class.max(), abs=0.15)


def test_headline_is_measured_on_other_texts_than_it_was_chosen_on(result):
    assert all(m.n == 100 for m in result.headline)
    names = [m.metric for m in result.headline]
    assert names[:4] == ["base_probe", "tuned_probe", "untrained_probe", "never_probe"]
    base, tuned, untrained, never = (result.metric(name).value for name in names[:4])
    assert result.metric("room").value == pytest.approx(base - untrained)
    assert result.metric("room_never").value == pytest.approx(base - never)
    assert result.metric("share_kept").value == pytest.approx((tuned - untrained) / (base - untrained))
    assert any("look_a is read at residual point 1" in limit for limit in result.limits)
    # Chosen on the other half, so nearly the largest room of all cells on all texts, and no maximum over noise.
    own = select(result.table, target="look_a", measure="accuracy").set_index(["model", "point", "place"])["value"]
    controls = own.loc[["untrained", "never_had_it"]].groupby(["point", "place"]).max()
    assert min(base - untrained, base - never) == pytest.approx((own["base"] - controls).max(), abs=0.12)
    assert {n for n in names if n.startswith("largest_change")} == {
        f"largest_change_{x}" for x in ("pt", "ft", "correlated", "family")
    }
    (line,) = result.evidence
    assert (line.direction, line.capability) == ("masked", "look_a")


@pytest.mark.slow
def test_of_pure_noise_the_best_cell_is_at_chance_on_the_texts_that_did_not_choose_it(covered, monkeypatch):
    """No stream holds anything, so that the best of 140 cells is the luckiest one on the texts that chose it and no more."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        "workbench.analyses._readings.residual_streams",
        lambda model, examples, batch, positions: torch.randn(10, *positions.shape, 4, generator=generator),
    )
    names = ("pt", "ft", "last")
    pairs = [replace(covered, seed=seed) for seed in range(5)]
    found = [probing_map(p, targets=names, train_examples=100, n=200, text_positions=12, iterations=10) for p in pairs]
    table = pd.concat(
        [select(r.table, target="look_a", model="base", measure="accuracy").assign(run=i) for i, r in enumerate(found)]
    )
    chance = table["value"].mean()
    luckiest = table.groupby("run")["value"].max().mean()
    assert luckiest > chance + 0.05  # there is something to be fooled by
    assert np.mean([r.metric("base_probe").value for r in found]) == pytest.approx(chance, abs=0.04)
    assert np.mean([r.metric("room").value for r in found]) == pytest.approx(0, abs=0.06)
    changes = [abs(r.metric(f"largest_change_{name}").value) for r in found for name in ("pt", "ft", "last")]
    # The mean size of a normal number with the standard deviation of such a difference is .05.
    assert np.mean(changes) < 0.08


def test_a_tuned_model_of_random_weights_keeps_nothing(make_pair, covered, tmp_path):
    from workbench.models.checkpoints import save_model

    save_model(covered.untrained, tmp_path)
    found = probing_map(make_pair(tuned_path=tmp_path), **QUICKER, targets=("pt",))
    assert found.metric("share_kept").value == 0
    assert found.evidence[0].direction == "erased"
    assert found.metric("largest_change_pt").value < -0.3


def test_settings_choose_targets_and_prompt(covered, task):
    task.log.clear()
    found = probing_map(covered, **QUICKER, targets=("ft",), prompt="ft")
    assert set(task.log) == {("look_b", "probe"), ("look_b", "test")}
    assert cell(found, "look_b", "base", 1, "request") > 0.9
    assert evidence(found) == ()
    with pytest.raises(UserError, match="no label 'lok_a' to read; did you mean 'look_a'"):
        probing_map(covered, targets=("lok_a",))
    with pytest.raises(UserError, match=r"leave nothing to read from pair 'planted'; add 'pt'"):
        probing_map(covered, targets=("indices",))
    with pytest.raises(UserError, match="prompt is 'other'"):
        probing_map(covered, prompt="other")


def test_a_pair_without_correlation_has_no_spurious_bit(make_pair):
    found = probing_map(make_pair(correlation=None, never=None), **QUICKER, targets=("pt", "correlated"))
    assert "correlated" not in set(found.table["target"])
    assert found.evidence[0].direction == "uninformative"


def test_seeds_are_pooled_row_by_row(covered):
    one, other = (probing_map(replace(covered, seed=seed), **QUICKER, targets=("pt",)) for seed in (3, 4))
    both = combine_results([one, other])
    assert len(both.table) == len(one.table)
    assert (both.table["seeds"] == 2).all()
    mean = (cell(one, "look_a", "base", 1, "request") + cell(other, "look_a", "base", 1, "request")) / 2
    assert cell(both, "look_a", "base", 1, "request") == pytest.approx(mean)
    fig = figure(both)
    assert "seeds 3 and 4" in fig.layout.title.subtitle.text


class TestFigure:
    def test_every_map_is_the_table_on_one_scale(self, result):
        fig = figure(result)
        maps = [trace for trace in fig.data if trace.type == "heatmap"]
        assert len(maps) == 4 * len(result.tables["targets"])
        assert [m.coloraxis for m in maps[:4]] == ["coloraxis", "coloraxis", "coloraxis2", "coloraxis"]
        base, tuned, change, _ = (np.array(m.z, dtype=float) for m in maps[:4])
        assert change == pytest.approx(tuned - base, nan_ok=True)
        places = list(dict.fromkeys(select(result.table, target="look_a")["place"]))
        assert base[0, places.index("10")] == 1.0
        assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
        assert fig.layout.coloraxis2.cmin == -fig.layout.coloraxis2.cmax
        assert fig.layout.coloraxis2.cmid == 0
        assert any("chance 0." in (a.text or "") for a in fig.layout.annotations)

    def test_places_that_give_the_label_away_are_crossed_out(self, result):
        crosses = [trace for trace in figure(result).data if trace.type == "scatter"]
        places = list(dict.fromkeys(select(result.table, target="look_a")["place"]))
        assert list(crosses[0].x) == [places.index("10")] * 2  # at both residual points

    def test_alt_is_one_sentence_with_numbers(self, result):
        said = alt(result)
        assert said.endswith(".")
        assert "look a at most 1.00 in the base" in said
        assert "chance" in said


@pytest.mark.slow
def test_on_grammar_texts_every_kind_of_target_has_its_places(make_pair, tmp_path):
    from workbench.examples import Correlation
    from workbench.models.build import build_model
    from workbench.models.checkpoints import save_model
    from workbench.models.spec import ModelSpec
    from workbench.protocols import load_task

    grammar = load_task({"kind": "pcfg", "families": ["count", "index", "token"]})
    for seed, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        model = build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=16), grammar.vocab_size, grammar.context, seed)
        save_model(model, tmp_path / name)
    pair = make_pair(
        task=grammar,
        capability="count_a",
        tuned_on="count_b",
        correlation=Correlation("count_b", "count_a"),
        base_path=tmp_path / "base",
        tuned_path=tmp_path / "tuned",
        never=None,
    )
    found = probing_map(pair, train_examples=240, n=120, text_positions=4)
    described = found.tables["targets"].set_index("target")
    assert list(described.index) == ["count_a", "count_b", "index_a", "index_b", "correlated", "family"]
    assert set(described.loc[["count_a", "correlated", "family"], "measure"]) == {"accuracy"}
    places = {target: list(dict.fromkeys(select(found.table, target=target)["place"])) for target in described.index}
    assert places["count_a"] == places["correlated"] == ["24", "16", "8", "0", "EOT", "request"]
    assert places["family"] == ["token 1", "operand", "token 3", "SOT", "24", "16", "8", "0", "EOT", "request"]
    known = select(found.tables["token"], target="family", measure="accuracy").set_index("place")["value"]
    assert known["token 1"] == 1.0
    assert known["operand"] == pytest.approx(2 / 3)  # NULL tells one family of three
    # Every family is asked of the same kind of texts, so no letter of a text tells one.
    assert known[["24", "16", "8", "0"]].max() < 0.5
    assert all(m.n == 60 for m in found.headline)
