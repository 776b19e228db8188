"""The loop, held against a naive loop in plain torch, against itself interrupted, and against itself shared by ranks."""

import contextlib
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from workbench.errors import UserError
from workbench.models.checkpoints import load_model, save_model
from workbench.models.fingerprint import weights_sha256
from workbench.training.loop import Interrupted, Objective, Targets, TrainingDiverged, _update, train
from workbench.training.settings import TrainSettings
from workbench.training.state import load_state, save_state

CPU = torch.device("cpu")
SETTINGS = TrainSettings(steps=12, lr=1e-2, batch_size=6, log_every=1, clip=0.5)


def naive_loss(model, examples):
    """Mean cross-entropy over the loss mask from whole logits, one token at a time."""
    logits = model(input_ids=examples.tokens).logits
    losses = [
        torch.logsumexp(logits[i, t - 1], 0) - logits[i, t - 1, examples.tokens[i, t]]
        for i in range(len(examples))
        for t in range(1, examples.tokens.shape[1])
        if examples.loss_mask[i, t]
    ]
    return torch.stack(losses).mean()


def naive_training(model, protocol, settings):
    """AdamW with warm-up, cosine and clipping, written out."""
    groups = [[p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]]
    decays = [settings.optimizer.weight_decay, 0.0]
    optimizer = torch.optim.AdamW(
        [{"params": g, "weight_decay": d} for g, d in zip(groups, decays, strict=True)],
        betas=settings.optimizer.betas,
        foreach=False,
    )
    losses, norms = [], []
    for step in range(settings.steps):
        warm = round(0.1 * settings.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - 1 - warm)))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * ((step + 1) / warm if step < warm else 0.01 + 0.99 * cosine)
        loss = naive_loss(model, protocol.batch(step))
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
        if norm > settings.clip:
            for p in model.parameters():
                p.grad.mul_(settings.clip / (norm + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms


def objective(model, examples):
    """`(loss per target, number of targets)`."""
    targets = Targets.of(examples)
    return Objective(model)(examples, targets.answers) / targets.count, targets.count


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_the_loop_is_the_naive_loop(small, protocol, listener, everywhere, k):
    settings = SETTINGS.model_copy(update={"optimizer": SETTINGS.optimizer.model_copy(update={"weight_decay": 0.1})})
    ours, theirs, seen = small().double(), small().double(), listener()
    train(ours, protocol(everywhere=everywhere, k=k), settings, seen, device=CPU, seed=0)
    losses, norms = naive_training(theirs, protocol(everywhere=everywhere, k=k), settings)
    assert [s.loss_nats for s in seen.steps] == pytest.approx(losses, abs=1e-9)
    assert [s.gradient_norm for s in seen.steps] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > settings.clip
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not ours.training


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("everywhere", [True, False])
def test_the_objective_is_the_summed_cross_entropy_and_its_count(small, random_examples, everywhere, padded):
    examples = random_examples(everywhere=everywhere)
    if padded:
        end = examples.answer_position + 1
        keep = torch.arange(10) <= end[:, None]
        examples = replace(examples, attention_mask=keep, loss_mask=examples.loss_mask & keep)
    loss, targets = objective(small(), examples)
    assert targets == int(examples.loss_mask.sum())
    assert float(loss.detach()) == pytest.approx(float(naive_loss(small(), examples).detach()), abs=1e-5)


def test_the_first_token_is_predicted_by_nothing_and_does_not_count(small, random_examples):
    examples = random_examples(everywhere=True)
    mask = examples.loss_mask.clone()
    mask[:, 0] = True
    expected, found = objective(small(), examples), objective(small(), replace(examples, loss_mask=mask))
    assert torch.allclose(found[0], expected[0])
    assert found[1] == expected[1]


def test_as_many_targets_as_answers_elsewhere_are_not_mistaken_for_answers(small, random_examples):
    examples = random_examples()
    shifted = torch.zeros_like(examples.loss_mask).scatter(1, examples.answer_position[:, None], True)
    examples = replace(examples, loss_mask=shifted)
    assert float(objective(small(), examples)[0].detach()) == pytest.approx(
        float(naive_loss(small(), examples).detach()), abs=1e-5
    )


def test_with_loss_on_the_answer_the_gradient_passes_through_its_position_alone(small, random_examples):
    model = small()
    final = []

    def keep(_, __, output):
        output.retain_grad()
        final.append(output)

    model.transformer.ln_f.register_forward_hook(keep)
    examples = random_examples(k=2)
    objective(model, examples)[0].backward()
    at = torch.zeros(final[0].shape[:2], dtype=torch.bool)
    for i, place in enumerate(examples.answer_position.tolist()):
        at[i, [place, place + 1]] = True
    touched = final[0].grad.abs().sum(-1) > 0
    assert torch.equal(touched, at)


def test_the_learning_rate_of_the_schedule_is_the_one_logged(small, protocol, listener):
    seen = listener()
    train(small(), protocol(), SETTINGS, seen, device=CPU, seed=0)
    assert [s.lr for s in seen.steps] == [SETTINGS.lr * SETTINGS.schedule.factor(k, 12) for k in range(12)]


def test_losses_are_means_since_the_line_before(small, protocol, listener):
    each, some = listener(), listener()
    train(small(), protocol(), SETTINGS, each, device=CPU, seed=0)
    train(small(), protocol(), SETTINGS.model_copy(update={"log_every": 4}), some, device=CPU, seed=0)
    assert [s.step for s in some.steps] == [4, 5, 7, 8, 10, 12]  # every fourth, and the grid
    losses = [s.loss_nats for s in each.steps]
    lines = [losses[:4], losses[4:5], losses[5:7], losses[7:8], losses[8:10], losses[10:]]
    assert [s.loss_nats for s in some.steps] == pytest.approx([sum(line) / len(line) for line in lines])
    assert some.steps[-1].seconds_left == 0
    assert all(s.seconds_left >= 0 for s in some.steps)


def test_the_listener_sees_the_grid_in_evaluation_mode_after_the_line_of_that_step(small, protocol, listener):
    seen, source = listener(), protocol()
    train(small(), source, SETTINGS, seen, device=CPU, seed=0)
    assert seen.points == [(0, False), (5, False), (7, False), (10, False), (12, True)]
    assert not any(seen.modes)
    for step, _ in seen.points[1:]:
        assert seen.order.index(("step", step)) == seen.order.index(("grid", step)) - 1
    assert source.asked == list(range(12))
    assert same(seen.weights[0], small().state_dict())


def test_a_run_of_no_steps_is_its_start(small, protocol, listener):
    seen, source = listener(), protocol()
    model = train(small(), source, SETTINGS.model_copy(update={"steps": 0}), seen, device=CPU, seed=0)
    assert seen.points == [(0, True)]
    assert not source.asked
    assert same(model.state_dict(), small().state_dict())


def test_a_point_off_the_grid_comes_when_due_and_changes_nothing(small, protocol, listener):
    plain, asking = listener(), listener(due_after=3)
    expected = train(small(), protocol(), SETTINGS, plain, device=CPU, seed=0)
    model = train(small(), protocol(), SETTINGS, asking, device=CPU, seed=0)
    assert [p for p in asking.points if p not in plain.points] == [(3, False)]
    assert same(model.state_dict(), expected.state_dict())
    assert [s.loss_nats for s in asking.steps] == [s.loss_nats for s in plain.steps]


def test_the_stop_rule_ends_the_run_as_done(small, protocol, listener):
    seen, whole, source = listener(stop_at=7), listener(), protocol()
    model = train(small(), source, SETTINGS, seen, device=CPU, seed=0)
    train(small(), protocol(), SETTINGS, whole, device=CPU, seed=0)
    assert source.asked == list(range(7))
    assert same(model.state_dict(), whole.weights[7])
    assert train(small(), source, SETTINGS, listener(stop_at=0), device=CPU, seed=0) is not None
    assert source.asked == list(range(7))


@pytest.mark.parametrize("optimizer", [{"kind": "adamw", "weight_decay": 0.1}, {"kind": "sgd"}, {"kind": "sgd", "momentum": 0}])
@pytest.mark.parametrize(("cut", "accumulate"), [(3, 1), (7, 1), (0, 1), (7, 4)])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(small, protocol, listener, tmp_path, optimizer, cut, accumulate):
    settings = TrainSettings(**{**SETTINGS.model_dump(), "optimizer": optimizer, "accumulate": accumulate})
    whole = listener()
    expected = train(small(dropout=0.2), protocol(), settings, whole, device=CPU, seed=4)

    class Save(listener):
        def grid(self, step, model, state, last):
            if last:
                save_model(model, tmp_path)
                save_state(state(), tmp_path)
            return super().grid(step, model, state, last)

    source, seen = protocol(), Save()
    with pytest.raises(Interrupted):
        train(small(dropout=0.2), source, settings, seen, device=CPU, seed=4, should_stop=lambda: len(source.asked) == cut)
    assert seen.points[-1] == (cut, True)
    rest, after = protocol(), listener()
    torch.rand(7)  # the global random state of the new process is another
    resumed = train(load_model(tmp_path), rest, settings, after, device=CPU, seed=4, resume=load_state(tmp_path))
    assert rest.asked == list(range(cut, 12))
    assert same(resumed.state_dict(), expected.state_dict())
    assert [(s.step, s.loss_nats) for s in after.steps] == [(s.step, s.loss_nats) for s in whole.steps if s.step > cut]
    assert [p for p in whole.points if p[0] > cut] == after.points


def test_dropout_is_on_in_training_and_depends_on_the_seed(small, protocol, listener):
    runs = {}
    for name, dropout, seed in (
        ("dry", 0.0, 0),
        ("dry again", 0.0, 1),
        ("wet", 0.2, 0),
        ("wet too", 0.2, 0),
        ("other", 0.2, 1),
    ):
        torch.manual_seed(hash(name) % 1000)
        runs[name] = weights_sha256(train(small(dropout), protocol(), SETTINGS, listener(), device=CPU, seed=seed))
    assert runs["dry"] == runs["dry again"]
    assert runs["wet"] == runs["wet too"]
    assert len(set(runs.values())) == 3


def test_training_leaves_the_global_random_state_alone(small, protocol, listener):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = small()
    train(model, protocol(), SETTINGS, listener(), device=CPU, seed=0)
    assert torch.equal(torch.rand(3), expected)


class Poisoned:
    """A listener whose tracker spoils a weight after a given update."""

    def __init__(self, at):
        self.at = at

    def after_update(self, step, model, optimizer):
        if step == self.at:
            with torch.no_grad():
                model.lm_head.weight[0, 0] = float("nan")


@pytest.mark.parametrize("log_every", [1, 10, 100])
def test_a_loss_that_is_no_number_stops_with_a_sentence_and_good_checkpoints(small, protocol, listener, log_every):
    seen = listener()
    settings = SETTINGS.model_copy(update={"steps": 100, "log_every": log_every})
    with pytest.raises(
        TrainingDiverged, match=r"loss nan and gradient norm nan at step 9 .+; lower lr or lengthen the warm-up"
    ):
        train(small(), protocol(), settings, seen, device=CPU, seed=0, trackers=[Poisoned(8)])
    assert [step for step, _ in seen.points] == [0, 5, 7]
    assert all(torch.isfinite(w).all() for w in seen.weights[7].values())
    assert isinstance(TrainingDiverged("x"), UserError)


def test_a_gradient_that_overflows_stops_too(small, protocol, listener):
    class Overflow:
        def after_update(self, step, model, optimizer):
            model.lm_head.weight.register_hook(lambda g: g * float("inf"))

    with pytest.raises(TrainingDiverged, match="at step 2"):
        train(small(), protocol(), SETTINGS, listener(), device=CPU, seed=0, trackers=[Overflow()])


def test_trackers_see_each_update_with_its_gradients(small, protocol, listener):
    class Look:
        def __init__(self):
            self.steps, self.norms = [], []

        def after_update(self, step, model, optimizer):
            self.steps.append(step)
            self.norms.append(math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters())))
            assert optimizer.param_groups[0]["lr"] > 0

    looks, seen = [Look(), Look()], listener()
    train(small(), protocol(), SETTINGS, seen, device=CPU, seed=0, trackers=looks)
    assert looks[0].steps == looks[1].steps == list(range(1, 13))
    clipped = [min(s.gradient_norm, SETTINGS.clip) for s in seen.steps]
    assert looks[0].norms == pytest.approx(clipped, rel=1e-3)


def test_bf16_runs_on_the_cpu_keeps_float32_weights_and_is_close(small, protocol, listener):
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    exact, coarse = listener(), listener()
    train(small(), protocol(everywhere=True), SETTINGS, exact, device=CPU, seed=0)
    model = train(small(), protocol(everywhere=True), settings, coarse, device=CPU, seed=0)
    assert model.dtype == torch.float32
    a, b = [s.loss_nats for s in exact.steps], [s.loss_nats for s in coarse.steps]
    assert a != b
    assert a == pytest.approx(b, abs=0.05)


def test_a_worker_trains_one_precision_after_another(small, protocol, listener):
    """Accelerate keeps its settings process-wide, and a worker of a study lives on."""
    hashes = [
        weights_sha256(train(small(), protocol(), SETTINGS.model_copy(update={"precision": p}), listener(), device=CPU, seed=0))
        for p in ("no", "bf16", "no", "bf16")
    ]
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]


class Rank(Accelerator):
    """An accelerator that pretends to be one of several; `synced` says of each way back whether ranks would talk in it."""

    process_index = num_processes = device = None
    autocast = contextlib.nullcontext

    def __init__(self, rank, world):
        self.process_index, self.num_processes, self.device = rank, world, CPU
        self.talks, self.synced = True, []

    def reduce(self, value, reduction):
        assert reduction == "mean"
        return value

    @contextlib.contextmanager
    def no_sync(self, model):
        self.talks = False
        yield
        self.talks = True

    def backward(self, loss):
        self.synced.append(self.talks)
        loss.backward()

    def clip_grad_norm_(self, parameters, clip):
        return torch.tensor(0.0)


def ragged(examples, kind):
    """Loss on a random part of the tokens with whole rows without any, on the answers, or on answers that stand in no token."""
    if kind == "answers":
        return examples
    if kind == "outside":
        return replace(examples, loss_mask=torch.zeros_like(examples.loss_mask), answer=(examples.answer + 1) % 20)
    mask = examples.loss_mask.clone()
    mask[[0, 3]] = False
    return replace(examples, loss_mask=mask)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 5), (2, 2), (2, 3)])
@pytest.mark.parametrize("n", [8, 7])
@pytest.mark.parametrize("kind", ["ragged", "answers", "outside"])
def test_ranks_and_parts_share_a_batch_into_disjoint_pieces_whose_mean_gradient_is_the_wholes(
    small, random_examples, world, accumulate, n, kind
):
    batch = ragged(random_examples(n=n, everywhere=kind == "ragged"), kind)
    expected, model = small().double(), small().double()
    loss = objective(expected, batch)[0] if kind == "outside" else naive_loss(expected, batch)
    loss.backward()
    rows, losses = [], []
    for rank in range(world):
        module = Objective(model)
        module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].tokens))
        accelerator = Rank(rank, world)
        losses.append(_update(accelerator, module, torch.optim.SGD(model.parameters(), lr=0.0), batch, 1.0, accumulate)[0])
        assert accelerator.synced == [False] * (accumulate - 1) + [True]
    together = sorted(row for part in rows for row in part.tolist())
    assert together == sorted(batch.tokens.tolist())
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert float(sum(losses) / world) == pytest.approx(float(loss.detach()), abs=1e-6)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a.grad / world, b.grad, atol=1e-8)


class Ragged:
    """Batches of a protocol with whole rows that are no targets."""

    asks = frozenset()

    def __init__(self, protocol):
        self.protocol, self.batch_size = protocol, protocol.batch_size

    def batch(self, step):
        return ragged(self.protocol.batch(step), "ragged")


@pytest.mark.parametrize("accumulate", [2, 4, 6])
def test_a_batch_in_parts_trains_as_the_whole_does(small, protocol, listener, accumulate):
    parts = SETTINGS.model_copy(update={"accumulate": accumulate})
    whole, split = listener(), listener()
    expected = train(small().double(), Ragged(protocol(everywhere=True)), SETTINGS, whole, device=CPU, seed=0)
    model = train(small().double(), Ragged(protocol(everywhere=True)), parts, split, device=CPU, seed=0)
    assert [s.loss_nats for s in split.steps] == pytest.approx([s.loss_nats for s in whole.steps], abs=1e-9)
    assert [s.gradient_norm for s in split.steps] == pytest.approx([s.gradient_norm for s in whole.steps], rel=1e-6)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_update_sees_every_example_of_its_batch_once_whatever_the_parts(small, protocol, listener, monkeypatch):
    """The paper's code showed one part of a batch in all of them, and trained on an eighth of the data."""
    seen, forward = [], Objective.forward

    def look(self, examples, answers):
        seen.append(examples.tokens)
        return forward(self, examples, answers)

    monkeypatch.setattr(Objective, "forward", look)
    settings, source = SETTINGS.model_copy(update={"steps": 3, "accumulate": 4}), protocol()
    train(small(), source, settings, listener(), device=CPU, seed=0)
    assert source.asked == [0, 1, 2]
    assert [len(part) for part in seen] == [2, 2, 1, 1] * 3
    for step in range(3):
        shown = sorted(torch.cat(seen[4 * step : 4 * step + 4]).tolist())
        assert shown == sorted(protocol().batch(step).tokens.tolist())
        assert len({tuple(row) for row in shown}) == 6


def test_a_batch_in_parts_is_close_in_bf16(small, protocol, listener):
    settings = SETTINGS.model_copy(update={"precision": "bf16", "accumulate": 3})
    exact, coarse = listener(), listener()
    train(small(), protocol(everywhere=True), SETTINGS, exact, device=CPU, seed=0)
    train(small(), protocol(everywhere=True), settings, coarse, device=CPU, seed=0)
    assert [s.loss_nats for s in coarse.steps] == pytest.approx([s.loss_nats for s in exact.steps], abs=0.05)


def test_a_batch_that_has_fewer_examples_than_parts_is_refused(small, protocol, listener):
    settings, source = SETTINGS.model_copy(update={"accumulate": 7}), protocol()
    with pytest.raises(UserError) as error:
        train(small(), source, settings, listener(), device=CPU, seed=0)
    assert str(error.value) == (
        "a batch of 6 examples cannot be shared by 1 process in 7 parts each; raise batch_size or lower accumulate."
    )
    assert not source.asked


RANKS = Path(__file__).with_name("ranks.py")


def _launch(world, batch, folder, accumulate=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(RANKS), str(batch), str(folder), str(accumulate)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (7, 1), (7, 3)])
def test_two_processes_are_one_with_the_whole_batch(tmp_path, batch, accumulate):
    """Over gloo, with unequal numbers of targets on ranks and parts; float64, so that only a wrong mean could show."""
    one = _launch(1, batch, tmp_path / "one.pt")
    two = _launch(2, batch, tmp_path / "two.pt", accumulate)
    assert (one["world"], two["world"]) == (1, 2)
    assert two["all_reduces"] == 5  # one an update, whatever the parts
    assert torch.allclose(two["losses"], one["losses"], atol=1e-6)
    assert torch.allclose(two["norms"], one["norms"], atol=1e-6)
    for name in one["weights"]:
        assert torch.allclose(two["weights"][name], one["weights"][name], atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "accumulate", "parts", "fix"), [(1, 1, "", "start fewer"), (3, 2, " in 2 parts each", "lower accumulate")]
)
def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, batch, accumulate, parts, fix):
    assert _launch(2, batch, tmp_path / "out.pt", accumulate)["error"] == (
        f"a batch of {batch} examples cannot be shared by 2 processes{parts}; raise batch_size or {fix}."
    )
