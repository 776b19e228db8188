"""The paper's own numbers, as they stand in its appendix [Jain+23 Tab 3-8]."""

from __future__ import annotations

import pytest

from workbench.errors import UserError
from workbench.figures.tables import select
from workbench.paper import published

OF_MODELS = ("table5_counter_200K", "table6_counter_50K", "table7_index_200K", "table8_index_50K")


def one(table, **place):
    """The only value at a place, in per cent."""
    rows = select(table, **place)
    assert len(rows) == 1
    return pytest.approx(100 * rows["value"].iloc[0])


def test_which_tables_there_are():
    assert published.names() == ("table3_tracr", "table4_tracr_reft", *OF_MODELS)


@pytest.mark.parametrize(("table", "lines"), [("table3_tracr", 28), *((name, 36) for name in OF_MODELS)])
def test_tables_have_as_many_lines_as_in_print(table, lines):
    assert len(published.read(table)) == lines


@pytest.mark.parametrize("table", OF_MODELS)
def test_every_line_of_tables_5_to_8_has_ten_accuracies_and_two_of_them_hold_for_both_kinds_of_texts(table):
    """Two abilities x (two kinds of texts x two lengths of fine-tuning, and the pretrained model, for both kinds of texts)."""
    found = published.accuracies(table)
    assert len(found) == 36 * 2 * (2 * 2 + 2)
    assert found["value"].between(0, 1).all()
    assert set(found["its"]) == {0, 1000, 10_000}
    assert set(found["rate_name"]) == {"large", "medium", "small"}
    assert set(found["prior"]) == {0.999, 0.9, 0.5}
    assert set(found["c_tr"]) == {0.0, 0.5, 0.8, 1.0}


# As printed: rate, prior, C_Tr, then "1K -> 10K" of O_PT and O_FT on uncorrelated and on correlated texts.
PRINTED = [
    ("large", 0.999, 0.0, (9.7, 9.5), (14.5, 0), (99.4, 100), (74.9, 87.5)),
    ("medium", 0.999, 0.8, (12.1, 6.6), (7.7, 0.2), (6.1, 85.7), (98.4, 99.7)),
    ("medium", 0.9, 1.0, (98.5, 13.5), (88.6, 0.8), (58.3, 3.6), (99.8, 100)),
    ("small", 0.999, 1.0, (71.7, 2.3), (56, 0), (15.7, 0), (29.5, 99.9)),
    ("small", 0.5, 1.0, (100, 97.6), (98.6, 85.1), (99.8, 73.9), (98.3, 100)),
]


@pytest.mark.parametrize("line", PRINTED, ids=lambda line: f"{line[0]}-{line[1]}-{line[2]}")
def test_values_of_table_5(line):
    rate, prior, c_tr, *measured = line
    table = published.accuracies("table5_counter_200K")
    cells = [(role, share) for role in ("pt", "ft") for share in (0.0, 1.0)]
    for (role, share), (early, late) in zip(cells, measured, strict=True):
        place = {"rate_name": rate, "prior": prior, "c_tr": c_tr, "role": role, "share": share}
        assert one(table, **place, its=1000) == early
        assert one(table, **place, its=10_000) == late


@pytest.mark.parametrize(
    ("table", "o_pt", "o_ft"),
    [
        ("table5_counter_200K", (100, 100, 99.9), (27.1, 99.9, 99.9)),
        ("table6_counter_50K", (99.9, 99.9, 99.8), (5.17, 15.8, 99.7)),
        ("table7_index_200K", (99.0, 99.2, 98.0), (9.3, 97.1, 98.9)),
        ("table8_index_50K", (94.2, 94.2, 88.6), (3.2, 69.9, 91.5)),
    ],
)
def test_what_the_pretrained_models_could(table, o_pt, o_ft):
    found = published.accuracies(table)
    for role, values in (("pt", o_pt), ("ft", o_ft)):
        for prior, value in zip((0.999, 0.9, 0.5), values, strict=True):
            rows = select(found, role=role, prior=prior, its=0)
            assert set(rows["share"]) == {0.0, 1.0}
            assert rows["value"].to_numpy() == pytest.approx(value / 100)


def test_values_of_indexing():
    table = published.accuracies("table7_index_200K")
    place = {"rate_name": "medium", "prior": 0.999, "its": 10_000}
    assert one(table, **place, c_tr=0.0, role="ft", share=0.0) == 85.4
    assert one(table, **place, c_tr=0.0, role="pt", share=0.0) == 2.6
    assert one(table, **place, c_tr=1.0, role="pt", share=0.0) == 27.7
    place = {"rate_name": "small", "prior": 0.999, "its": 10_000, "c_tr": 1.0}
    assert one(table, **place, role="ft", share=1.0) == 95.6


@pytest.mark.parametrize(
    ("program", "rate", "c_tr", "values"),  # O_PT, O_FT at C_Te = 1, then both at C_Te = 0
    [
        ("count", "large", 1.0, (0, 100, 35.8, 0.7)),
        ("count", "medium", 0.9, (1.4, 98.5, 7.1, 39.3)),
        ("count", "small", 0.5, (7.1, 90.9, 19.8, 2.3)),
        ("count", "very small", 0.0, (32.6, 0, 10.6, 28.7)),
        ("max", "large", 0.0, (20.3, 34.5, 0, 99.3)),
        ("max", "very small", 1.0, (0, 90.2, 0.7, 88.6)),
    ],
)
def test_values_of_the_compiled_models(program, rate, c_tr, values):
    table = published.compiled("table3_tracr", program)
    assert len(table) == 28 * 4
    assert set(table["its"]) == {10_000}
    cells = [(role, share) for share in (1.0, 0.0) for role in ("pt", "ft")]
    for (role, share), value in zip(cells, values, strict=True):
        assert one(table, rate_name=rate, c_tr=c_tr, role=role, share=share) == value


def test_an_unknown_table_is_the_users_to_mend():
    with pytest.raises(UserError, match="no published table 'table5_counter'; did you mean 'table5_counter_200K'"):
        published.read("table5_counter")


@pytest.mark.parametrize(
    ("priors", "nearest"),
    [
        ([0.5, 0.7, 0.9, 0.99, 0.999], {0.5: 0.5, 0.9: 0.9, 0.99: 0.999}),  # .7 was not printed, .99 is the low one here
        ([0.999], {0.999: 0.999}),
        ([0.7, 0.98], {}),
        ([], {}),
    ],
)
def test_which_published_prior_a_small_studys_stands_for(priors, nearest):
    assert published.nearest_priors(priors) == nearest


def test_at_the_papers_scale_priors_stand_for_themselves():
    assert published.nearest_priors([0.5, 0.7, 0.9, 0.99, 0.999], same_scale=True) == {0.5: 0.5, 0.9: 0.9, 0.999: 0.999}


def test_lengths_of_pretraining_behind_the_tables():
    assert [published.pretrain_steps(name) for name in OF_MODELS] == [200_000, 50_000, 200_000, 50_000]
    with pytest.raises(UserError, match="'table3_tracr' is not one of pretrained models"):
        published.pretrain_steps("table3_tracr")
