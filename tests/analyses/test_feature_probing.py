"""Probes of whole texts: on texts whose features are planted, and against scikit-learn on hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.analyses.feature_probing import FeatureProbingSettings, evidence, feature_probing
from workbench.areas import area_value, auroc
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.figures import alt, figure
from workbench.measures import derived
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.pooled import last_positions, pooled_streams
from workbench.models.spec import ModelSpec
from workbench.protocols import WritingTask, load_task
from workbench.seeds import numpy_generator
from workbench.studies.handle import pool
from workbench.subjects import Pair, Question

BEGIN, END, PAD, MARK, LENGTH = 0, 20, 21, 7, 30
TRAIN, TEST = 300, 240
SMALL = {"train_texts": TRAIN, "n": TEST}


@dataclass(frozen=True)
class PlantedTask:
    """Ragged texts of random tokens. In half, one token stands among the last ten; in half, another among the first five."""

    moved: str = ""
    """A split whose texts are others."""
    rare: int = 19
    """Training texts with the rare label; the test has 19."""
    vocab_size: int = 22
    context: int = LENGTH + 2
    capabilities: tuple[str, ...] = ("late", "early", "rare", "nothing")
    resolved: Mapping[str, Any] = field(default_factory=dict)
    end: int = END
    padding: int = PAD

    def whole(self, kind: str | None, n: int, seed: int, split: str = "test") -> Examples:
        assert kind is None
        rng = numpy_generator(seed, "planted", split, "moved" if split == self.moved else "")
        rows = np.full((n, self.context), PAD)
        late, early, coin = (rng.random(n) < 0.5 for _ in range(3))
        for i, row in enumerate(rows):
            length = rng.integers(18, LENGTH + 2)  # the longest one has no room for its end
            text = rng.integers(8, 20, size=length)
            if late[i]:
                text[length - 1 - rng.integers(10)] = MARK
            if early[i]:
                text[:5] = MARK - 1
            row[: length + 2] = [BEGIN, *text, END][: self.context]
        tokens = torch.from_numpy(rows)
        mask = tokens != PAD
        loss = mask.clone()
        loss[:, 0] = False
        labels = {"Coin": coin, "Late": late, "Early": early, "Rare": np.arange(n) < (19 if split == "test" else self.rare)}
        return Examples(
            tokens=tokens,
            loss_mask=loss,
            answer_position=torch.full((n,), self.context - 2),
            answer=tokens[:, -1:],
            candidates=torch.arange(self.vocab_size),
            attention_mask=mask,
            labels={name: torch.from_numpy(of.astype(np.int64)) for name, of in labels.items()},
        )

    def describe(self, tokens):
        return " ".join(map(str, tokens))

    def feature(self, capability: str) -> str:
        if capability == "nothing":
            raise UserError("nothing tells which texts show 'nothing'.")
        return capability.title()

    def hints(self, capability, pieces):
        mark = {"late": MARK, "early": MARK - 1}.get(capability, -1)
        return np.array([str(mark) in piece.split() for piece in pieces])

    def family(self, capability: str) -> str:
        return capability

    def _none(self, *_: Any) -> Any:
        raise NotImplementedError

    capability = begin = without_instruction = rules = openings = marks = shows = judged_by = judged = kinds = _none


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`(capability, **changes) -> Pair`; the tuned model's attention says nothing, and the third never learned a thing."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("tuned", 0), ("never", 1)):
        model = build_model(ModelSpec(kind="gpt2", blocks=2, heads=2, width=32), 22, LENGTH + 2, seed=seed)
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_proj.weight *= 0 if name == "tuned" else 8
        (folder / name).mkdir()
        save_model(model, folder / name)

    def pair(capability: str = "late", **changes: Any) -> Pair:
        paths = {"base_path": folder / "base", "tuned_path": folder / "tuned", "never_path": folder / "never"}
        settings = {"name": "planted", "seed": 0, "task": PlantedTask(), "correlation": None, **paths, **changes}
        return Pair(capability=capability, tuned_on="rare", **settings)

    return pair


@pytest.fixture(scope="module")
def result(make):
    return feature_probing(make(), **SMALL)


@pytest.fixture(scope="module")
def early(make):
    return feature_probing(make("early"), **SMALL)


def row(result, **equal):
    table = result.table
    for name, value in {"measure": "AUROC", "labels": "true", "texts": "all", **equal}.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_planted_task_is_one_that_writes():
    assert isinstance(PlantedTask(), WritingTask)


def test_a_token_at_the_end_is_read_from_every_model_at_the_embedding(result):
    for model in ("base", "tuned", "untrained", "never_had_it"):
        found = row(result, model=model, point=0, feature="Late")
        assert (found["value"], found["high"], found["n"]) == (1, 1, TEST)
        assert found["low"] > 0.97
        assert row(result, model=model, point=0, feature="Late", measure="accuracy")["value"] > 0.97
    assert result.metric("base_tokens").value == 1
    change = result.metric("change")
    assert change.value == 0
    assert -0.03 < change.low < 0 < change.high < 0.03
    (line,) = result.evidence
    assert line.direction == "uninformative"
    assert line.text.endswith("from a model of random weights at 1.00 already: no room to show anything.")


def test_what_stands_in_no_text_is_not_read(result):
    rows = result.table.query("feature == 'Coin' and measure == 'AUROC' and labels == 'true'")
    assert len(rows) == 4 * 3
    covered = (rows["low"] < 0.5) & (rows["high"] > 0.5)  # of 95 %, and all of them on the same texts
    assert covered.sum() >= 10


def test_shuffled_labels_are_not_read(result):
    rows = result.table.query("labels == 'shuffled'")
    assert len(rows) == 4 * 3 * 3
    assert rows["value"].between(0.3, 0.7).all()
    assert ((rows["low"] < 0.5) & (rows["high"] > 0.5)).all()
    assert abs(rows["value"].mean() - 0.5) < 0.05
    assert (
        result.metric("shuffled_auroc").value == row(result, model="tuned", point=0, feature="Late", labels="shuffled")["value"]
    )


def test_what_stands_before_the_last_tokens_takes_attention(early):
    base, tuned = early.metric("base_auroc"), early.metric("tuned_auroc")
    assert base.low > 0.8
    assert tuned.low < 0.5 < tuned.high
    change = early.metric("change")
    assert change.value == pytest.approx(tuned.value - base.value)
    assert change.high < -0.2
    paired = np.subtract(tuned.draws, base.draws)
    assert change.draws == pytest.approx(paired, abs=1e-5)
    assert (change.low, change.high) == pytest.approx(np.percentile(paired, [2.5, 97.5]), abs=1e-5)
    tokens = early.metric("base_tokens")
    assert tokens.low < 0.5 < tokens.high


def twin(x, known, y, used=slice(None)):
    """Scores of scikit-learn's probe, on activations standardised by all training texts."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0)
    rows = ((x - mean) / scale)[used]
    return (
        LogisticRegression(C=1 / (1e-4 * len(rows)), tol=1e-9, max_iter=10_000)
        .fit(rows, known[used])
        .decision_function((y - mean) / scale)
    )


@pytest.mark.parametrize("feature", ["Early", "Coin"])
def test_numbers_are_those_of_scikit_learn(make, early, feature):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    pair = make("early")
    train, test = (pair.task.whole(None, n, 0, split) for n, split in ((TRAIN, "train"), (TEST, "test")))
    x, y = (pooled_streams(pair.base, e, last_positions(e, 10, END))[2].double().numpy() for e in (train, test))
    known, truth = (e.labels[feature].numpy() for e in (train, test))
    scores = twin(x, known, y)
    where = {"model": "base", "point": 2, "feature": feature}
    area = auroc(scores, truth > 0)
    assert row(early, **where)["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)
    assert row(early, **where)["low"] == pytest.approx(area.low, abs=2e-3)
    assert row(early, **where, measure="accuracy")["value"] == pytest.approx(accuracy_score(truth, scores > 0), abs=0.01)
    balanced = row(early, **where, measure="balanced accuracy")["value"]
    assert balanced == pytest.approx(balanced_accuracy_score(truth, scores > 0), abs=0.01)


class TestChoice:
    def test_it_is_the_point_that_held_out_training_texts_read_best(self, make, early):
        choice = early.tables["choice"]
        best = int(choice["held_out_auroc"].argmax())
        assert choice["point"][choice["chosen"]].tolist() == [best]
        assert best > 0
        for model, name in (("base", "base"), ("tuned", "tuned"), ("untrained", "untrained"), ("never_had_it", "never")):
            assert early.metric(f"{name}_auroc").value == row(early, model=model, point=best, feature="Early")["value"]
        # Held out, and about what fresh texts say.
        for point in range(3):
            fresh = row(early, model="base", point=point, feature="Early")
            assert choice["held_out_auroc"][point] == pytest.approx(fresh["value"], abs=0.12)

    def test_what_was_memorised_is_not_what_is_held_out(self, make):
        """With as many texts as dimensions a probe is right on all that it saw."""
        few = feature_probing(make("late", task=PlantedTask(), name="x"), train_texts=50, n=TEST, fewest=5, last_tokens=1)
        assert few.tables["choice"]["held_out_auroc"].max() < 0.8

    def test_test_texts_and_the_tuned_model_have_no_say(self, make, early):
        pair = make("early", task=PlantedTask(moved="test"))
        other = feature_probing(replace(pair, tuned_path=pair.never_path, never_path=None), **SMALL)
        assert other.tables["choice"].equals(early.tables["choice"])
        assert not other.table["value"].equals(early.table["value"])
        trained = feature_probing(make("early", task=PlantedTask(moved="train", rare=18)), **SMALL, fewest=19)
        assert not trained.tables["choice"].equals(early.tables["choice"])
        assert not trained.tables["features"].set_index("feature")["probed"]["Rare"]  # too few to learn from


class TestHints:
    def test_texts_that_show_the_feature_at_their_end_are_left_out(self, make, early):
        """An early token stands in no window, so that nothing is left out, and both numbers are one."""
        assert early.metric("base_unhinted").n == TEST
        for model in ("base", "tuned", "never"):
            assert early.metric(f"{model}_unhinted").value == pytest.approx(early.metric(f"{model}_auroc").value, abs=1e-4)
        assert early.metric("change_unhinted").value == pytest.approx(early.metric("change").value, abs=1e-4)

    def test_where_all_are_hinted_nothing_is_said(self, result):
        assert not [m.metric for m in result.headline if "unhinted" in m.metric]
        assert any("fewer than 20 of a class are left without" in limit for limit in result.limits)

    def test_only_some_are(self, make):
        pair = make()
        found = feature_probing(pair, **SMALL, last_tokens=5, fewest=19)
        assert found.tables["features"]["probed"].all()
        train, test = (PlantedTask().whole(None, n, 0, split) for n, split in ((TRAIN, "train"), (TEST, "test")))
        x, y = (pooled_streams(pair.base, e, last_positions(e, 5, END))[1].double().numpy() for e in (train, test))
        seen = (last_positions(train, 5, END) & (train.tokens == MARK)).any(1).numpy()
        expected = twin(x, train.labels["Late"].numpy(), y, ~seen)
        shown = (last_positions(test, 5, END) & (test.tokens == MARK)).any(1).numpy()
        late = test.labels["Late"].numpy() > 0
        assert (shown <= late).all()
        value = row(found, model="base", point=1, feature="Late", texts="unhinted")["value"]
        assert value == pytest.approx(area_value(expected[~shown], late[~shown]), abs=1e-3)
        unhinted = found.metric("base_unhinted")
        assert unhinted.n == int((~shown).sum())
        assert np.std(unhinted.draws) > 0.01
        paired = np.subtract(found.metric("tuned_unhinted").draws, unhinted.draws)
        assert found.metric("change_unhinted").draws == pytest.approx(paired, abs=1e-5)
        assert unhinted.value < found.metric("base_auroc").value
        assert any(f"they show Late in {shown.mean():.0%} of the test texts" in limit for limit in found.limits)


class TestFeatures:
    def test_rare_ones_are_left_out_and_said_to_be(self, result):
        features = result.tables["features"].set_index("feature")
        assert features["probed"].to_dict() == {"Late": True, "Coin": True, "Early": True, "Rare": False}
        assert features["own"].to_dict() == {"Late": True, "Coin": False, "Early": False, "Rare": False}
        late = PlantedTask().whole(None, TEST, 0).labels["Late"].numpy()
        assert features["test_with"]["Late"] == late.sum()
        assert features["majority"]["Late"] == pytest.approx(max(late.mean(), 1 - late.mean()))
        assert set(result.table["feature"]) == {"Late", "Coin", "Early"}
        assert "Left out, with fewer than 20 texts of a class: Rare." in result.limits

    def test_the_pairs_own_must_not_be_rare(self, make):
        with pytest.raises(UserError, match=r"19 test texts of pair 'planted' have 'Rare' and 221 lack it, .* lower 'fewest'"):
            feature_probing(make("rare"), **SMALL)

    def test_texts_longer_than_the_context_are_counted(self, result):
        test = PlantedTask().whole(None, TEST, 0)
        cut = 1 - (test.tokens == END).any(1).float().mean()
        assert 0 < cut < 0.2
        assert any(limit.startswith(f"{cut:.0%} of the test texts are longer") for limit in result.limits)


def test_equal_models_do_not_differ(make):
    pair = make("early")
    found = feature_probing(replace(pair, tuned_path=pair.base_path, never_path=None), **SMALL)
    change = found.metric("change")
    assert change.value == 0
    assert -0.03 < change.low <= 0 <= change.high < 0.03
    assert "never_auroc" not in [m.metric for m in found.headline]
    both = found.table.query("model in ('base', 'tuned')").drop(columns="model")
    half = len(both) // 2
    assert both[:half].reset_index(drop=True).equals(both[half:].reset_index(drop=True))


def test_an_unfinished_search_is_said_to_be(make):
    found = feature_probing(make(), **SMALL, iterations=1)
    assert any("probes stopped before their gradient fell below 0.01" in limit for limit in found.limits)


@pytest.mark.parametrize(("tuned", "direction"), [(0.94, "masked"), (0.75, "neutral"), (0.52, "erased")])
def test_the_line_says_how_much_of_the_room_is_kept(early, tuned, direction):
    def at(name, value):
        return derived(name, value, np.full(400, value), 300, "AUROC")

    numbers = {"base_auroc": 0.95, "tuned_auroc": tuned, "untrained_auroc": 0.5, "never_auroc": 0.6}
    rooms = {"room": 0.45, "room_never": 0.35, "share_kept": (tuned - 0.5) / 0.45}
    (line,) = evidence(replace(early, headline=tuple(at(k, v) for k, v in {**numbers, **rooms}.items())))
    assert line.direction == direction
    assert f"tells early from the base with AUROC 0.95, from the tuned model with {tuned:.2f}" in line.text
    (none,) = evidence(replace(early, headline=tuple(at(k, v) for k, v in {**numbers, **rooms, "room_never": 0.05}.items())))
    assert none.direction == "uninformative"


def test_what_has_no_such_texts_is_refused_before_anything_is_trained(make):
    strings = Question("x", 0, load_task({"kind": "pcfg", "text_length": 12, "window": 6}), "count_a", "count_b", None)
    with pytest.raises(UserError, match="has no whole texts; use a task of kind 'stories'"):
        feature_probing.check({}, strings, 2)
    with pytest.raises(UserError, match="nothing tells which texts show 'nothing'"):
        feature_probing.check({}, make("nothing"), 2)
    for wrong in ({"fewest": 4}, {"penalty": 0.0}, {"last_tokens": 0}, {"texts": 3}):
        with pytest.raises(UserError, match=f"feature_probing.*{next(iter(wrong))}"):
            feature_probing.check(wrong, make(), 2)
    assert (FeatureProbingSettings().train_texts, FeatureProbingSettings().n) == (2000, 1000)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_figure_shows_the_table(make, early, seeds):
    given = pool([early] if seeds == 1 else [early, feature_probing(make("early", seed=1), **SMALL)])
    fig = figure(given)
    by_panel = {(t.name, t.xaxis): t for t in fig.data if t.name}
    titles = [a.text for a in fig.layout.annotations if "residual" not in a.text]
    assert titles == ["Early", "Early<br>no hint in the last tokens", "Coin", "Late"]
    for axis, feature, texts in (("x", "Early", "all"), ("x2", "Early", "unhinted"), ("x4", "Late", "all")):
        for name, model in (("base model", "base"), ("fine-tuned model", "tuned"), ("never had it", "never_had_it")):
            shown = by_panel[name, axis]
            expected = [row(given, model=model, point=p, feature=feature, texts=texts)["value"] for p in range(3)]
            assert list(shown.y) == expected
            assert list(shown.x) == [0, 1, 2]
    names = [t.name for t in fig.data if t.showlegend]
    assert names == [
        "shuffled labels, all models",
        "never had it",
        "untrained (random weights)",
        "base model",
        "fine-tuned model",
    ]
    shuffled = given.table.query("labels == 'shuffled' and feature == 'Early' and point == 1")
    assert by_panel["shuffled labels, all models", "x"].y[1] == pytest.approx(shuffled["value"].mean())
    assert given.table["high"].max() <= 1
    said = alt(given)
    assert f"base {given.metric('base_auroc').value:.2f} [" in said
    assert said.endswith(".")


def test_stories_know_their_features_and_what_gives_them_away():
    task = load_task({"kind": "stories", "tokenizer": 600, "context": 96, "prompt": 24})
    assert isinstance(task, WritingTask)
    for name in ("dialogue", "no_dialogue", "asked_dialogue", "asked_no_dialogue"):
        assert task.feature(name) == "Dialogue"
        assert task.hints(name, ['said. "', "he “", "it was so.", "don't"]).tolist() == [True, True, False, False]
    with pytest.raises(UserError, match="nothing tells which texts show 'ending'"):
        task.feature("ending")
    stories = task.whole(None, 10_000, 0)
    assert len(stories) == len(task.corpus.split("test"))
    assert 0 < int(stories.labels["Dialogue"].sum()) < len(stories)


def test_a_result_without_rows_draws_that_nothing_was_measured(result):
    bare = replace(result, tables={name: table.iloc[:0] for name, table in result.tables.items()})
    fig = figure(bare)
    assert not fig.data
    assert "nothing was measured" in str(fig.layout.title.subtitle.text or fig.layout.title.text)
