"""The task: settings, capabilities, examples, chance, and the floors of oracle models."""

import numpy as np
import pytest
import torch

from synthetic_tasks.chance import best_constant, best_given
from synthetic_tasks.families import FAMILIES
from synthetic_tasks.pcfg import PcfgTask
from workbench.errors import UserError
from workbench.examples import Capability, Correlation
from workbench.protocols import Task

TASK = PcfgTask.from_settings({})
PAPER = PcfgTask.from_settings({"text_length": 250, "window": 40, "occurrence": 6, "families": ["count", "index"]})
PLUS_ONE = Correlation("count_b", "count_a", 1)


def names(task, ids):
    return task.vocabulary.decode(ids.tolist())


def text_of(task, examples, row):
    return "".join(names(task, examples.tokens[row][examples.roles["text"][row]]))


class TestContract:
    def test_it_is_a_task(self):
        assert isinstance(TASK, Task)
        assert isinstance(TASK.capability("count_a"), Capability)
        assert (TASK.vocab_size, TASK.context) == (54, 41)
        assert (PAPER.vocab_size, PAPER.context) == (272, 259)
        assert PcfgTask.from_settings({"text_length": 48, "window": 16}).context == 57

    def test_capabilities(self):
        assert len(TASK.capabilities) == 13
        assert TASK.capabilities[:4] == ("count_a", "count_b", "count_c", "pair_count_aa")
        assert TASK.capabilities[-1] == "token"
        assert [TASK.family(c) for c in ("count_b", "pair_index_cc", "token")] == ["count", "pair_index", "token"]

    def test_examples(self):
        examples = TASK.capability("count_b").examples(50, seed=0)
        assert len(examples) == 50
        assert examples.loss_mask.sum(1).tolist() == [1] * 50
        assert set(names(TASK, examples.tokens[torch.arange(50), examples.answer_position])) == {"ART"}
        # The one target is the answer, and it stands right after the position that predicts it.
        assert (examples.tokens[examples.loss_mask] == examples.answer[:, 0]).all()
        assert (examples.tokens[torch.arange(50), examples.answer_position + 1] == examples.answer[:, 0]).all()

    def test_describe(self):
        examples = TASK.capability("count_a").examples(1, seed=0)
        line = TASK.describe(examples.tokens[0].tolist())
        answer = text_of(TASK, examples, 0)[-12:].count("a")
        assert line == f"SOS C a 12 SOT {text_of(TASK, examples, 0)} EOT ART {answer} EOS"


class TestAnswers:
    @pytest.mark.parametrize(
        ("capability", "prompt"),
        [
            ("count_a", "C a 12"),
            ("pair_count_cc", "CC cc 12"),
            ("index_b", "I b 3"),
            ("pair_index_aa", "IC aa 3"),
            ("token", "T NULL 12"),
        ],
    )
    def test_prompts(self, capability, prompt):
        examples = TASK.capability(capability).examples(3, seed=0)
        assert all(" ".join(names(TASK, row[1:4])) == prompt for row in examples.tokens)

    def naive(self, capability, text):
        if capability == "token":
            return text[-1 - 12]
        family, piece = capability.rsplit("_", 1)
        starts = [i for i in range(len(text)) if text[i:].startswith(piece)]
        if family.endswith("count"):
            return str(sum(i >= len(text) - 12 for i in starts))
        return str(len(text) - 1 - starts[-3]) if len(starts) >= 3 else "ABSENT"

    @pytest.mark.parametrize("capability", TASK.capabilities)
    def test_answers_are_true_and_among_the_candidates(self, capability):
        examples = TASK.capability(capability).examples(100, seed=1)
        expected = [self.naive(capability, text_of(TASK, examples, i)) for i in range(100)]
        assert names(TASK, examples.answer[:, 0]) == expected
        assert set(expected) <= set(names(TASK, examples.candidates))

    def test_candidates(self):
        found = {f: names(TASK, TASK.capability(c).examples(1, 0).candidates) for f, c in zip(FAMILIES, ONE_EACH, strict=True)}
        assert found["count"] == [str(i) for i in range(13)]
        assert found["pair_count"] == [str(i) for i in range(12)]
        assert found["index"] == [*map(str, range(32)), "ABSENT"]
        assert found["pair_index"] == [*map(str, range(1, 32)), "ABSENT"]
        assert found["token"] == ["a", "b", "c"]

    def test_labels_of_all_families(self):
        examples = TASK.capability("token").examples(40, seed=2)
        assert set(examples.labels) == set(TASK.capabilities)
        for i in range(40):
            text = text_of(TASK, examples, i)
            for capability in TASK.capabilities[:12]:
                label = int(examples.labels[capability][i])
                assert (str(label) if label >= 0 else "ABSENT") == self.naive(capability, text)
            assert "abc"[examples.labels["token"][i]] == text[-13]


ONE_EACH = ("count_a", "pair_count_aa", "index_a", "pair_index_aa", "token")


class TestStreams:
    @pytest.mark.parametrize("correlation", [None, PLUS_ONE, PLUS_ONE.at(0.0)])
    @pytest.mark.parametrize("texts", ["natural", "balanced", "pretraining"])
    def test_the_same_strings_serve_both_prompts(self, correlation, texts):
        if correlation is not None:
            texts = "natural"
        a, b = (TASK.capability(c, correlation, texts).examples(30, seed=3) for c in ("count_a", "count_b"))
        assert [text_of(TASK, a, i) for i in range(30)] == [text_of(TASK, b, i) for i in range(30)]
        assert (a.tokens[:, 2] != b.tokens[:, 2]).all()

    def test_equal_arguments_give_equal_examples(self):
        draw = lambda *args: TASK.capability("count_a", PLUS_ONE).examples(20, *args).tokens  # noqa: E731
        assert (draw(0) == draw(0)).all()
        assert (draw(0) != draw(1)).any()
        assert (draw(0, "test") != draw(0, "validation")).any()


class TestDistributions:
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(
        ("target", "partner", "offset"),
        [
            ("count_b", "count_a", 1),
            ("count_c", "count_b", -2),
            ("index_b", "index_a", 1),
            ("pair_count_bb", "pair_count_aa", 1),
        ],
    )
    def test_correlated_label(self, target, partner, offset, share):
        examples = TASK.capability(partner, Correlation(target, partner, offset, share)).examples(400, seed=4)
        holds = examples.labels[target] == examples.labels[partner] + offset
        assert (holds == examples.labels["correlated"].bool()).all()
        assert share - 0.11 < holds.float().mean() < share + 0.11
        assert (holds.all(), (~holds).all()) == (share == 1, share == 0)

    def test_pair_distances_exist_when_correlated(self):
        correlation = Correlation("pair_index_bb", "pair_index_aa", 4, 0.5)
        task = PcfgTask.from_settings({"text_length": 64, "window": 12, "occurrence": 1})
        examples = task.capability("pair_index_aa", correlation).examples(300, seed=5)
        left, right = examples.labels["pair_index_bb"], examples.labels["pair_index_aa"]
        assert (left > 0).all()
        assert (right > 0).all()
        assert ((left == right + 4) == examples.labels["correlated"].bool()).all()

    def test_balanced_and_pretraining_texts(self):
        counts = {
            kind: PAPER.capability("count_a", texts=kind).examples(3000, seed=6).labels["count_a"].numpy()
            for kind in ("natural", "balanced", "pretraining")
        }
        spread = {kind: set(values.tolist()) for kind, values in counts.items()}
        assert spread["balanced"] == set(range(8, 20))
        assert spread["natural"] <= set(range(9, 19))
        outside = {kind: np.isin(values, (8, 19)).mean() for kind, values in counts.items()}
        assert outside["balanced"] == pytest.approx(2 / 12, abs=0.03)
        assert outside["pretraining"] == pytest.approx(1 / 12, abs=0.03)

    def test_families_without_recipe_stay_natural(self):
        natural, balanced = (TASK.capability("token", texts=kind).examples(20, seed=7) for kind in ("natural", "balanced"))
        assert (natural.tokens == balanced.tokens).all()


class TestChance:
    def test_estimates_by_hand(self):
        answer, known = np.array([1, 1, 2, 3]), np.array([0, 0, 0, 5])
        assert best_constant(answer) == 0.5
        assert best_given(answer, known) == 0.75

    def test_floors_of_the_paper(self):
        a, b = (PAPER.capability(c, PLUS_ONE.at(0)).examples(2000, seed=8) for c in ("count_a", "count_b"))
        count_a, count_b = (a.labels[c] for c in ("count_a", "count_b"))
        zero = PAPER.vocabulary.zero
        accuracy = lambda examples, says: float((examples.answer[:, 0] == zero + says).double().mean())  # noqa: E731
        assert accuracy(a, count_b) == pytest.approx(0.091, abs=0.02)  # perfect b asked for a
        assert accuracy(b, count_a) == pytest.approx(0.091, abs=0.02)
        assert accuracy(b, count_a + 1) == 0  # the shortcut
        assert accuracy(a, count_a) == 1
        assert a.chance["majority"] == pytest.approx(0.091, abs=0.025)
        always = PAPER.capability("count_b", PLUS_ONE).examples(2000, seed=8)
        assert accuracy(always, always.labels["count_a"] + 1) == 1
        assert always.chance["given count_a"] == 1
        assert PAPER.capability("count_a", PLUS_ONE).examples(10, seed=8).chance["given count_b"] == 1

    def test_natural_labels_are_narrow(self):
        chance = PAPER.capability("count_b").examples(1, seed=0).chance
        assert chance["majority"] == pytest.approx(0.34, abs=0.03)
        assert chance["given count_a"] == pytest.approx(0.40, abs=0.03)

    def test_it_does_not_depend_on_the_examples(self):
        source = TASK.capability("index_a", Correlation("index_b", "index_a"))
        assert source.examples(1, seed=0).chance == source.examples(7, seed=9).chance
        assert set(source.examples(1, seed=0).chance) == {"majority", "given index_b", "given index_c"}


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"windwo": 3}, "task pcfg has no setting 'windwo'; did you mean 'window'"),
            ({"window": 33}, "'window' is 33; make it at most the text length 32"),
            ({"occurrence": 40}, "'occurrence' is 40"),
            ({"token_distance": 32}, "'token_distance' is 32; make it below the text length 32"),
            ({"window": 0}, "window is 0: it must be at least 1."),
            ({"text_length": "long"}, "text_length is 'long': it must be a whole number."),
            ({"families": ["counts"]}, "no task family 'counts'; did you mean 'count'"),
            ({"families": []}, "at least one"),
            ({"families": ["count", "count"]}, "name each family once"),
            ({"grammar": "nowhere"}, "no grammar named 'nowhere'"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(UserError, match=message):
            PcfgTask.from_settings(settings)

    @pytest.mark.parametrize(
        ("correlation", "message"),
        [
            (Correlation("count_b", "index_a"), r"different families \(count, index\)"),
            (Correlation("count_b", "count_d"), "no capability 'count_d'"),
            (Correlation("count_b", "count_a", 40), "offset 40 between two counts does not fit the window 12"),
            (Correlation("index_b", "index_a", 0), "offset 0 between two indices is impossible"),
            (Correlation("pair_index_bb", "pair_index_aa", 1), r"pair_index_bb = pair_index_aa \+1 holds in too few natural"),
        ],
    )
    def test_correlations(self, correlation, message, monkeypatch):
        monkeypatch.setattr("synthetic_tasks.correlation.MAX_ROUNDS", 5)
        with pytest.raises(UserError, match=message):
            TASK.capability("count_b", correlation)

    def test_capabilities(self):
        with pytest.raises(UserError, match="no capability 'count_aa'; did you mean"):
            TASK.capability("count_aa")
        with pytest.raises(UserError, match="no capability 'token'"):
            PAPER.family("token")
        with pytest.raises(UserError, match="exclude each other"):
            TASK.capability("count_a", PLUS_ONE, texts="balanced")
        with pytest.raises(UserError, match="no 'balance' texts; did you mean 'balanced'"):
            TASK.capability("count_a", texts="balance")
        with pytest.raises(UserError, match="0 examples of 'count_a'"):
            TASK.capability("count_a").examples(0, seed=0)


def test_a_user_grammar(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("terminals: x y\ns -> x y [0.5] | y y x [0.5]\n")
    task = PcfgTask.from_settings({"grammar": str(path), "text_length": 10, "window": 5, "families": ["count", "token"]})
    assert task.capabilities == ("count_x", "count_y", "token")
    examples = task.capability("count_y", texts="balanced").examples(20, seed=0)
    assert (examples.labels["count_x"] + examples.labels["count_y"] == 5).all()
    # Without a third letter nothing can be edited; correlated texts are then chosen among natural ones.
    examples = task.capability("count_y", Correlation("count_y", "count_x", 1)).examples(20, seed=0)
    assert (examples.labels["count_y"] == 3).all()


def test_public_names_are_lazy():
    import synthetic_tasks

    assert synthetic_tasks.PcfgTask is PcfgTask
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = synthetic_tasks.Nothing
