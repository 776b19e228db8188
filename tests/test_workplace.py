"""A computation finds its workplace without being handed one, and outside there is none."""

from pathlib import Path

from workbench.workplace import Meter, Workplace, working, workplace


def test_it_is_there_inside_and_gone_outside():
    assert workplace().folder is None
    with working(Workplace(Path("here"))):
        assert workplace().folder == Path("here")
        with working(Workplace()):
            assert workplace().folder is None
        assert workplace().folder == Path("here")
    assert workplace().folder is None


def test_a_meter_tells_who_was_there_when_it_was_made_and_stops_at_its_end():
    said = []
    with working(Workplace(progress=lambda done, total, what: said.append((done, total)))):
        meter = Meter(10)
    for more in (4, 4, 4):
        meter.tick(more)
    assert said == [(4, 10), (8, 10), (10, 10)]
