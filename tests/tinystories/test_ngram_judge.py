"""The n-gram judge finds planted features, learns from its own part of the texts alone, and comes back from disk as it was."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer

from tinystories.ngram_judge import _counts, _platt, _sigmoid, _split, _weighted, load_judge, train_judge
from workbench.errors import UserError
from workbench.seeds import numpy_generator

WORDS = tuple("the dog cat ran sat big red ball tree saw mom said went park day sun fun one two".split())  # noqa: SIM905


def texts_of(n, seed=0, words=WORDS, length=25):
    drawn = numpy_generator(seed, "words").choice(words, size=(n, length))
    return [" ".join(row) for row in drawn.tolist()]


def planted(n=400, seed=0, mark=' "Hi" '):
    """Texts of which about every second one has a mark somewhere."""
    generator = numpy_generator(seed, "marks")
    out, labels = [], []
    for text in texts_of(n, seed):
        has = bool(generator.random() < 0.5)
        place = text.index(" ", int(generator.integers(len(text) // 2)))
        out.append(text[:place] + mark + text[place + 1 :] if has else text)
        labels.append(has)
    return out, labels, ["here", "there"] * (n // 2)


@pytest.fixture(scope="module")
def judge():
    return train_judge(*planted(), "Dialogue", 1)


def test_a_planted_feature_is_found_in_texts_that_it_never_saw(judge):
    assert judge.quality.auroc.low > 0.9
    assert judge.quality.auroc_within.low > 0.9
    assert judge.quality.balanced_accuracy.value > 0.95
    texts, labels, _ = planted(200, seed=9)
    assert ((judge.probability(texts) >= 0.5) == labels).mean() > 0.95
    assert judge.trained_on == 280
    assert judge.quality.n == 60


def test_order_of_words_and_signs_without_spaces_count():
    backwards = planted(mark=" red ball dog ")[0]
    texts = [*planted(mark=" dog ball red ")[0], *backwards]
    pairs = train_judge(texts, [i < 400 for i in range(800)], ["one"] * 800, "order", 0)
    assert pairs.quality.auroc.low > 0.5
    signs = train_judge(*planted(mark="zq"), "letters", 0)
    assert signs.quality.auroc.low > 0.9


def test_random_labels_cannot_be_told():
    labels = numpy_generator(3, "labels").random(400) < 0.5
    quality = train_judge(texts_of(400), labels, ["one"] * 400, "nothing", 0).quality
    assert quality.auroc.low < 0.5 < quality.auroc.high
    assert max(b.end for b in quality.calibration if b.n) <= 0.8  # and it does not claim to know


def test_a_feature_that_is_but_the_source_shows_within_sources():
    generator = numpy_generator(4, "labels")
    texts = [*texts_of(300, words=WORDS[:12]), *texts_of(300, seed=1, words=WORDS[8:])]
    labels = generator.random(600) < np.repeat([0.15, 0.85], 300)
    quality = train_judge(texts, labels, np.repeat(["a", "b"], 300).tolist(), "feature", 0).quality
    assert quality.auroc.value > 0.75
    assert quality.auroc_within.value < 0.65


def test_each_part_is_used_for_its_own_end_alone(judge):
    texts, labels, sources = planted()
    part = _split(texts, sources, 1)
    for number in (1, 2):
        turned = train_judge(texts, np.where(part == number, np.logical_not(labels), labels), sources, "Dialogue", 1)
        assert np.array_equal(turned.weights, judge.weights)
        assert np.array_equal(turned.idf, judge.idf)
        assert (turned.scalars[1:] == judge.scalars[1:]).all() == (number == 2)
        assert turned.quality != judge.quality
    assert turned.quality.auroc.value == pytest.approx(1 - judge.quality.auroc.value)


def test_texts_are_divided_within_sources_equal_ones_together_and_by_nothing_but_their_hash():
    texts = texts_of(300)
    sources = ["a"] * 200 + ["b"] * 100
    part = _split([*texts, *texts[:150]], [*sources, *["b"] * 150], 0)
    assert np.array_equal(part[300:], part[:150])
    assert np.bincount(part[:200]).tolist() == [140, 30, 30]
    assert np.bincount(part[200:300]).tolist() == [70, 15, 15]
    order = numpy_generator(0, "order").permutation(300)
    mixed = _split([texts[i] for i in order], [sources[i] for i in order], 0)
    assert np.array_equal(mixed, part[order])
    assert not np.array_equal(_split(texts, sources, 1), part[:300])


def test_weights_of_n_grams_are_scikit_learns_tf_idf():
    counts = _counts(texts_of(50))
    twin = TfidfTransformer(sublinear_tf=True).fit(counts)
    idf = np.log(51 / (1 + np.bincount(counts.indices, minlength=counts.shape[1]))) + 1
    assert abs(_weighted(counts, idf) - twin.transform(counts)).max() < 1e-12
    assert counts.sum() == sum(25 + 24 + len(text) - 2 for text in texts_of(50))


def test_the_calibration_solves_platts_equations_also_where_classes_are_separated():
    drawn = np.random.default_rng(0)
    for evidence, truth in (
        (drawn.normal(size=200), drawn.random(200) < 0.3),
        (np.arange(20.0), np.arange(20) >= 12),
    ):
        m, n = truth.sum(), (~truth).sum()
        slope, offset = _platt(evidence, truth)
        error = _sigmoid(slope * evidence + offset) - np.where(truth, (m + 1) / (m + 2), 1 / (n + 2))
        assert abs(error.sum()) < 1e-3
        assert abs((error * evidence).sum()) < 1e-2


def test_it_comes_back_bit_for_bit_and_nothing_is_pickled(judge, tmp_path):
    texts = [*texts_of(50, seed=5), "", "ünusual ☃"]
    for _ in range(2):  # also in place of itself
        judge.save(tmp_path / "judge")
    back = load_judge(tmp_path / "judge")
    assert np.array_equal(back.probability(texts), judge.probability(texts))
    assert back.quality == judge.quality
    assert (back.feature, back.trained_on) == (judge.feature, judge.trained_on)
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == ["judge.json", "judge.npz"]
    with np.load(tmp_path / "judge" / "judge.npz", allow_pickle=False) as file:
        assert {file[name].dtype for name in file.files} == {np.dtype(np.float64)}


def test_the_same_seed_gives_the_same_judge_and_a_text_the_same_number_in_any_company(judge):
    again = train_judge(*planted(), "Dialogue", 1)
    texts = planted(30, seed=2)[0]
    assert np.array_equal(again.probability(texts), judge.probability(texts))
    assert np.array_equal([judge.probability([text])[0] for text in texts], judge.probability(texts))
    assert judge.probability([]).shape == (0,)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


@pytest.mark.parametrize("damage", ["cut", "pickle", "shape", "nan", "json", "format", "missing", "fields"])
def test_a_damaged_judge_is_refused_in_a_sentence(judge, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "judge"
    judge.save(folder)
    arrays = {"idf": judge.idf, "weights": judge.weights, "scalars": judge.scalars}
    facts = json.loads((folder / "judge.json").read_text())
    if damage == "cut":
        (folder / "judge.npz").write_bytes((folder / "judge.npz").read_bytes()[:-3000])
    elif damage in ("pickle", "shape", "nan"):
        wrong = {"pickle": np.array([Trap()], dtype=object), "shape": judge.weights[:5], "nan": judge.weights * np.nan}[damage]
        np.savez(folder / "judge.npz", **{**arrays, "weights": wrong}, allow_pickle=True)
    elif damage == "json":
        (folder / "judge.json").write_text("{")
    elif damage == "missing":
        folder = tmp_path / "nowhere"
    else:
        facts = {**facts, "format": 99} if damage == "format" else {**facts, "quality": {"n": 3}}
        (folder / "judge.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="holds no judge that can be read"):
        load_judge(folder)
    assert not Path("trapped").exists()


def test_a_folder_of_something_else_is_not_overwritten(judge, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no judge; name a new folder"):
        judge.save(tmp_path)
    with pytest.raises(UserError, match="holds no judge; name a new folder"):
        judge.save(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_feature_that_no_story_has_is_refused():
    texts, _, sources = planted(40)
    with pytest.raises(UserError, match="0 of 40 texts have Twist"):
        train_judge(texts, [False] * 40, sources, "Twist", 0)
    with pytest.raises(UserError, match="1 of 40 texts have Twist, and 0 of the"):
        train_judge(texts, [i == 0 for i in range(40)], sources, "Twist", 0)
