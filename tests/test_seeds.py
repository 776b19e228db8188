"""Random streams: equal names give equal draws on every machine, other names independent ones."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.seeds import numpy_generator, stream, torch_generator

LABELS = st.lists(st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])) | st.integers(), max_size=3)


def test_a_stream_is_the_upper_63_bits_of_sha256_so_that_no_version_moves_it():
    digest = hashlib.sha256(b"7\x1fpcfg\x1f3").digest()
    assert stream(7, "pcfg", 3) == int.from_bytes(digest[:8], "little") // 2


@pytest.mark.parametrize(("labels", "recorded"), [((), 2033344993903900207), (("weights",), 863023461364182508)])
def test_recorded_streams_do_not_move(labels, recorded):
    assert stream(0, *labels) == recorded


@given(st.integers(), LABELS)
def test_streams_are_seeds_for_numpy_and_torch(seed, labels):
    value = stream(seed, *labels)
    assert 0 <= value < 2**63
    np.random.Generator(np.random.PCG64(value))
    torch.Generator().manual_seed(value)


@given(st.integers(), st.integers(), LABELS, LABELS)
def test_other_names_are_other_streams(seed, other, labels, others):
    same = (seed, *map(str, labels)) == (other, *map(str, others))
    assert (stream(seed, *labels) == stream(other, *others)) == same


def test_labels_do_not_run_together():
    assert len({stream(0, "ab", "c"), stream(0, "a", "bc"), stream(0, "abc"), stream(0, "a", "b", "c")}) == 4


def test_generators_draw_the_named_stream_and_touch_no_global_state():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert numpy_generator(3, "x").random() == np.random.Generator(np.random.PCG64(stream(3, "x"))).random()
    expected = torch.rand(4, generator=torch.Generator().manual_seed(stream(3, "x")))
    assert torch.equal(torch.rand(4, generator=torch_generator(3, "x")), expected)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_another_process_with_another_hash_seed_gets_the_same():
    code = "from workbench.seeds import stream; import sys; print(stream(5, 'a', 1), 'torch' in sys.modules)"
    environment = {"PYTHONHASHSEED": "123", "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert found == f"{stream(5, 'a', 1)} False\n"
