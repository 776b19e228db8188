"""Vocabulary and layout: the order of tokens is part of the contract."""

import numpy as np
import pytest

from synthetic_tasks.prompts import Layout, Vocabulary
from workbench.errors import UserError

ABC = ("a", "b", "c")
SMALL = Vocabulary(ABC, 4)


class TestVocabulary:
    def test_sizes(self):
        assert len(Vocabulary(ABC, 250)) == 272
        assert len(Vocabulary(ABC, 32)) == 54

    def test_order(self):
        expected = "PAD SOS SOT EOT ART EOS C CC I IC T J1 J2 NULL a b c aa bb cc 0 1 2 3 4 ABSENT"
        assert " ".join(SMALL.names) == expected
        assert len(set(Vocabulary(ABC, 250).names)) == 272

    def test_ids_and_names_are_inverse(self):
        assert SMALL.decode(range(len(SMALL))) == list(SMALL.names)
        assert SMALL.encode(SMALL.names) == list(range(len(SMALL)))
        assert SMALL.id(3) == SMALL.id("3") == SMALL.zero + 3
        assert SMALL.id("c") == SMALL.first_terminal + 2

    def test_unknown_tokens(self):
        with pytest.raises(UserError, match="token 'ABSENTT' is not in the vocabulary; did you mean 'ABSENT'"):
            SMALL.id("ABSENTT")
        with pytest.raises(UserError, match="token '5' is not in the vocabulary"):
            SMALL.encode([5])
        with pytest.raises(UserError, match="token id 26 is not in the vocabulary; ids go from 0 to 25"):
            SMALL.decode([26])
        with pytest.raises(UserError, match="token id -1"):
            SMALL.decode([-1])


class TestLayout:
    def sequence(self):
        text = np.array([[0, 1, 2, 0]], dtype=np.uint8)
        ids = [SMALL.id(name) for name in ("C", "a", 3, 2)]
        return Layout(SMALL).sequences(ids[0], ids[1], ids[2], text, ids[3])

    def test_sequence(self):
        names = SMALL.decode(self.sequence()[0].tolist())
        assert " ".join(names) == "SOS C a 3 SOT a b c a EOT ART 2 EOS"
        assert SMALL.describe(self.sequence()[0].tolist()) == "SOS C a 3 SOT abca EOT ART 2 EOS"

    def test_positions_of_the_paper(self):
        layout = Layout(Vocabulary(ABC, 250))
        assert (layout.length, layout.request, layout.answer) == (259, 256, 257)
        assert Layout(Vocabulary(ABC, 48)).length == 57

    def test_one_id_per_row(self):
        texts = np.zeros((2, 4), np.uint8)
        tokens = Layout(SMALL).sequences(np.array([6, 8]), np.array([14, 15]), np.array([20, 21]), texts, np.array([22, 25]))
        assert tokens[:, [1, 2, 3, 11]].tolist() == [[6, 14, 20, 22], [8, 15, 21, 25]]

    def test_roles(self):
        names = np.array(SMALL.decode(self.sequence()[0].tolist()))
        found = {role: names[mask[0].numpy()].tolist() for role, mask in Layout(SMALL).roles(1, 3).items()}
        assert found == {"operand": ["a"], "text": ["a", "b", "c", "a"], "window": ["b", "c", "a"], "request": ["ART"]}

    def test_text_of_another_length(self):
        with pytest.raises(ValueError, match="length 5"):
            Layout(SMALL).sequences(6, 14, 20, np.zeros((1, 5), np.uint8), 22)
