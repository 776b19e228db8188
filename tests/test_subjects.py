"""Pairs: the same texts for every prompt of a family, disjoint splits, and models loaded once."""

from dataclasses import replace

import pytest
import torch

from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.measures import role_of, shares
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.fingerprint import weights_sha256
from workbench.models.spec import ModelSpec
from workbench.protocols import load_task
from workbench.runs import Store, stage_key
from workbench.subjects import Pair, Trajectory, open_pair

TASK = {"kind": "pcfg", "text_length": 24, "window": 8, "families": ["count", "index", "token"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, task = tmp_path_factory.mktemp("models"), load_task(TASK)
    for seed, name in enumerate(("base", "tuned", "never")):
        (root / name).mkdir()
        save_model(build_model(ModelSpec(blocks=1, heads=1, width=8), task.vocab_size, task.context, seed), root / name)
    return root


@pytest.fixture
def pair(folders):
    return Pair(
        name="wrapped",
        seed=3,
        task=load_task(TASK),
        capability="count_a",
        tuned_on="count_b",
        correlation=Correlation("count_b", "count_a", 1, 1.0),
        base_path=folders / "base",
        tuned_path=folders / "tuned",
        never_path=folders / "never",
        n=60,
    )


def texts(examples):
    """The text of each row, without the prompt before it and the answer after it."""
    shared = examples.roles["text"].any(0).nonzero().flatten()
    return [tuple(row[shared].tolist()) for row in examples.tokens]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_both_prompts_ask_about_the_same_texts(pair, share):
    a, b = pair.examples("count_a", share=share), pair.examples("count_b", share=share)
    assert texts(a) == texts(b)
    assert not a.tokens.equal(b.tokens)
    assert a.labels["count_a"].equal(b.labels["count_a"])
    held = (a.labels["count_b"] == a.labels["count_a"] + 1).float().mean()
    assert held == share if share in (0, 1) else 0.2 < held < 0.8  # 60 texts, each with probability 0.5


def test_families_that_the_correlation_does_not_speak_of_have_plain_texts(pair):
    plain = replace(pair, correlation=None)
    assert pair.examples("index_a", share=1.0).tokens.equal(plain.examples("index_a").tokens)
    assert not pair.examples("count_a", share=1.0).tokens.equal(plain.examples("count_a").tokens)


def test_examples_are_a_function_of_their_arguments(pair):
    assert pair.examples("count_a").tokens.equal(pair.examples("count_a").tokens)
    assert len(pair.examples("count_a")) == 60
    assert len(pair.examples("count_a", n=7)) == 7
    assert not replace(pair, seed=4).examples("count_a").tokens.equal(pair.examples("count_a").tokens)


@pytest.mark.parametrize("correlated", [True, False])
def test_splits_share_no_text(pair, correlated):
    subject = pair if correlated else replace(pair, correlation=None)
    test, train = (set(texts(subject.examples("count_a", n=300, split=split))) for split in ("test", "train"))
    assert not test & train
    assert len(test) > 250


def test_models_are_those_of_the_folders_and_are_loaded_once(pair, folders):
    models = [pair.base, pair.tuned, pair.never_had_it]
    assert len({weights_sha256(m) for m in models}) == 3
    assert pair.base is pair.base
    assert weights_sha256(pair.base) == weights_sha256(replace(pair).base)
    assert replace(pair, never_path=None).never_had_it is None


def test_the_untrained_control_has_the_bases_shape_and_weights_by_seed(pair):
    assert weights_sha256(pair.untrained) not in {weights_sha256(pair.base), weights_sha256(replace(pair, seed=4).untrained)}
    assert weights_sha256(pair.untrained) == weights_sha256(replace(pair).untrained)
    assert pair.untrained.num_parameters() == pair.base.num_parameters()


def test_swapping_exchanges_base_and_tuned_also_after_they_were_loaded(pair):
    base, tuned = weights_sha256(pair.base), weights_sha256(pair.tuned)
    swapped = pair.swapped()
    assert (weights_sha256(swapped.base), weights_sha256(swapped.tuned)) == (tuned, base)
    assert swapped.never_path == pair.never_path
    assert swapped.swapped() == pair


def test_the_others_are_one_capability_of_each_untouched_family(pair):
    assert [pair.task.family(c) for c in pair.others] == ["index", "token"]
    assert replace(pair, tuned_on="index_a").others == pair.others[1:]


def test_another_identifier_of_what_may_be_lost_is_an_alias_and_no_other_ability(pair):
    assert pair.aliases == ()
    asked = replace(pair, task=load_task({**TASK, "identifiers": 3}))
    assert asked.aliases == ("count_j1_a", "count_j2_a")
    assert asked.others == pair.others
    assert [role_of(asked, c) for c in ("count_a", "count_b", "count_j1_a", "token")] == ["pt", "ft", "alias", "other"]
    for share in (0.0, 1.0):  # asked on the same texts, so that only the identifier differs
        assert shares(asked, "count_j1_a") == shares(asked, "count_a") == (0.0, 1.0)
        mine, plain = (asked.examples(c, share=share, n=40) for c in ("count_j1_a", "count_a"))
        assert (mine.answer == plain.answer).all()
        assert (mine.tokens != plain.tokens).any(0).sum() == 1


def test_a_device_that_is_not_there_is_refused_when_a_model_is_asked_for(pair):
    with pytest.raises(UserError, match="device 'banana' is not available"):
        _ = replace(pair, device="banana").base


@pytest.fixture
def store(tmp_path):
    """Four finished trainings and one without a checkpoint."""
    store = Store(tmp_path / "runs")
    for seed, name in enumerate(("base", "tuned", "never", "arm")):
        model = build_model(ModelSpec(blocks=1, heads=1, width=8), 46, 33, seed)
        spec = {"name": name}
        with store.write("study", name, "pretrain", stage_key(spec, 1, "float32", []), spec) as writer:
            for step in (0, 5):
                with writer.checkpoint(step) as folder:
                    save_model(model if step else build_model(ModelSpec(blocks=1, heads=1, width=8), 46, 33, 9), folder)
            writer.evaluation(5, "test", "count_a", None, torch.ones(4).numpy())
            writer.metrics([(5, "train", "loss_nats", 0.5)])
    return store


def body(store, **changes):
    key = {run.stage: run.key for run in store.runs()}
    return {
        "task": TASK,
        "capability": "count_a",
        "tuned_on": "count_b",
        "correlation": {"target": "count_b", "partner": "count_a", "offset": 1, "share": 1.0},
        "base": key["base"],
        "tuned": key["tuned"],
        "never_had_it": key["never"],
        "arms": {"revived": key["arm"]},
        "examples": 40,
        **changes,
    }


def test_a_pair_is_opened_from_the_runs_that_its_spec_names(store):
    pair = open_pair(body(store), store, "wrapped", 2)
    for seed, model in enumerate((pair.base, pair.tuned, pair.never_had_it)):
        assert weights_sha256(model) == weights_sha256(build_model(ModelSpec(blocks=1, heads=1, width=8), 46, 33, seed))
    assert (pair.name, pair.seed, pair.n, pair.device) == ("wrapped", 2, 40, "cpu")
    assert pair.correlation == Correlation("count_b", "count_a", 1, 1.0)
    assert isinstance(pair.trajectory, Trajectory)
    assert pair.trajectory.run.stage == "tuned"
    assert pair.arms["revived"].run.stage == "arm"
    rows = pair.trajectory.evaluations.to_dict("records")
    assert [(r["step"], r["capability"], list(r["values"])) for r in rows] == [(5, "count_a", [1, 1, 1, 1])]
    assert pair.trajectory.metrics["value"].tolist() == [0.5]


def test_the_revived_model_is_the_end_of_its_arm_and_the_states_are_in_order(store):
    pair = open_pair(body(store), store, "wrapped", 2)
    arm = build_model(ModelSpec(blocks=1, heads=1, width=8), 46, 33, 3)
    assert weights_sha256(pair.revived) == weights_sha256(arm)
    assert list(pair.states) == ["base", "tuned", "revived"]
    assert pair.states["revived"] is pair.revived
    without = open_pair(body(store, arms={}), store, "wrapped", 2)
    assert without.revived is None
    assert list(without.states) == ["base", "tuned"]


def test_siblings_are_pairs_of_models_by_name(store):
    key = {run.stage: run.key for run in store.runs()}
    pair = open_pair(body(store, siblings={"other": {"base": key["base"], "tuned": key["never"]}}), store, "wrapped", 2)
    found = [weights_sha256(model) for model in pair.sibling("other")]
    assert found == [weights_sha256(pair.base), weights_sha256(pair.never_had_it)]
    assert dict(open_pair(body(store), store, "wrapped", 2).siblings) == {}


def test_what_a_spec_leaves_out_is_absent(store):
    pair = open_pair(body(store, never_had_it=None, correlation=None, arms={}), store, "plain", 0)
    assert (pair.never_had_it, pair.correlation, dict(pair.arms)) == (None, None, {})


@pytest.mark.parametrize("part", ["base", "tuned", "never_had_it"])
def test_a_missing_run_is_named(store, part):
    with pytest.raises(UserError, match="run 0123456789 of pair 'wrapped' is missing; run the study again"):
        open_pair(body(store, **{part: "0123456789"}), store, "wrapped", 0)


def test_a_missing_arm_is_named(store):
    with pytest.raises(UserError, match="run 0123456789 of pair 'wrapped' is missing"):
        open_pair(body(store, arms={"revived": "0123456789"}), store, "wrapped", 0)


def test_a_damaged_run_is_named(store):
    run = next(run for run in store.runs() if run.stage == "tuned")
    (run.path / "status.json").write_text("{")
    (run.path / "spec.yaml").write_text("{")
    with pytest.raises(UserError, match=f"run {run.key} of pair 'wrapped' is damaged"):
        open_pair(body(store, tuned=run.key), store, "wrapped", 0)


class Plain:
    """A task that edits nothing."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        if name == "counterfactual":
            raise AttributeError(name)
        return getattr(self.task, name)


def test_counterfactuals_are_the_tasks_own_and_tell_whether_they_are_correlated(pair):
    examples = pair.examples("count_a", share=1.0)
    filled = pair.counterfactual(examples, "count_a")
    other = filled.counterfactual
    assert torch.equal(filled.tokens, examples.tokens)
    assert other.tokens.equal(pair.task.counterfactual("count_a", examples, pair.seed).tokens)
    assert examples.labels["correlated"].all()
    held = other.labels["count_b"] == other.labels["count_a"] + 1
    assert other.labels["correlated"].bool().equal(held)
    assert not held.any()  # b stays, a does not
    assert len(filled[:5].counterfactual) == 5


def test_a_task_that_edits_nothing_gets_other_rows_of_the_same_draw(pair):
    subject = replace(pair, task=Plain(pair.task))
    examples = subject.examples("count_a")
    other = subject.counterfactual(examples, "count_a").counterfactual
    assert (other.answer != examples.answer).all()
    assert {tuple(row) for row in other.tokens.tolist()} <= {tuple(row) for row in examples.tokens.tolist()}
    assert other.tokens.equal(subject.counterfactual(examples, "count_a").counterfactual.tokens)
    assert not other.tokens.equal(replace(subject, seed=4).counterfactual(examples, "count_a").counterfactual.tokens)
