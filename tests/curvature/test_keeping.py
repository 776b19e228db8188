"""What is kept is whole or absent; growing rows are written once."""

import pytest
import torch

from workbench.curvature.keeping import FolderKeeper, Keeper, Pieces


@pytest.fixture
def keeper(tmp_path):
    return FolderKeeper(tmp_path / "deep" / "kept", "f00-")


def some(value=1.0):
    return {"a": torch.full((3, 2), value, dtype=torch.float64), "b": torch.tensor([True, False])}


def test_what_is_put_is_got_bit_for_bit(keeper):
    assert isinstance(keeper, Keeper)
    assert keeper.get("state") is None
    turned = torch.randn(5, 4, dtype=torch.float64).T[1:]  # not contiguous
    keeper.put("state", {**some(), "turned": turned, "count": torch.tensor(7)})
    got = keeper.get("state")
    assert torch.equal(got["turned"], turned)
    assert torch.equal(got["b"], torch.tensor([True, False]))
    assert got["a"].dtype == torch.float64
    assert int(got["count"]) == 7
    keeper.put("state", some(2.0))
    assert set(keeper.get("state")) == {"a", "b"}


def test_nothing_put_is_forgotten(keeper):
    keeper.put("state", {})
    keeper.put("state", some())
    keeper.put("state", {})
    assert keeper.get("state") is None
    assert list(keeper.folder.iterdir()) == []


def test_prefixes_do_not_see_each_other(keeper):
    keeper.put("state", some())
    assert FolderKeeper(keeper.folder, "f01-").get("state") is None


@pytest.mark.parametrize("damage", [b"", b"\x00" * 20, b"not tensors at all", None])
def test_a_damaged_file_is_absent(keeper, damage):
    keeper.put("state", some())
    (file,) = keeper.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    assert keeper.get("state") is None
    keeper.put("state", some())
    assert keeper.get("state") is not None


def test_a_kill_while_writing_leaves_the_old(keeper, monkeypatch):
    keeper.put("state", some(1.0))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        keeper.put("state", some(2.0))
    assert float(keeper.get("state")["a"][0, 0]) == 1
    assert [file.name for file in keeper.folder.iterdir()] == ["f00-state.safetensors"]


# --- pieces


def grown(memory, *lengths, generation=0):
    rows = torch.arange(40, dtype=torch.float64).reshape(20, 2) + 100 * generation
    pieces = Pieces(memory, "p")
    for length in lengths:
        pieces.save(generation, rows[:length], {"at": torch.tensor(length)})
    return rows


def test_rows_are_written_once_and_read_whole(memory):
    rows = grown(memory, 3, 7, 12)
    assert [len(memory.kept[f"p-{i}"]["rows"]) for i in range(3)] == [3, 4, 5]
    pieces = Pieces(memory, "p")
    kept = pieces.load()
    assert torch.equal(kept["rows"], rows[:12])
    assert int(kept["state"]["at"]) == 12
    pieces.save(0, rows[:15], {"at": torch.tensor(15)})  # goes on where it was
    assert torch.equal(Pieces(memory, "p").load()["rows"], rows[:15])


def test_a_missing_piece_ends_what_is_there(memory):
    rows = grown(memory, 3, 7, 12)
    memory.put("p-1", {})
    pieces = Pieces(memory, "p")
    kept = pieces.load()
    assert torch.equal(kept["rows"], rows[:3])
    assert int(kept["state"]["at"]) == 3
    pieces.save(0, rows[:7], {"at": torch.tensor(7)})
    assert torch.equal(Pieces(memory, "p").load()["rows"], rows[:12])


def test_older_generations_are_not_mixed_in(memory):
    grown(memory, 3, 7, 12)
    rows = grown(memory, 5, generation=1)
    pieces = Pieces(memory, "p")
    assert torch.equal(pieces.load()["rows"], rows[:5])
    assert Pieces(memory, "p").load(0) is None
    pieces.forget()
    assert not memory.kept


def test_without_a_keeper_nothing_happens():
    pieces = Pieces(None, "p")
    pieces.save(0, torch.zeros(3, 2), {})
    assert pieces.load() is None
    pieces.forget()
