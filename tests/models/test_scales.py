import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.errors import UserError
from restorevar.models import PAPER_SCALES_256, PAPER_SCALES_512, ScaleSchedule


@st.composite
def schedules(draw: st.DrawFn, largest: int = 9) -> ScaleSchedule:
    """Any legal schedule: sides that never shrink, square or not."""
    count = draw(st.integers(1, 6))
    heights = sorted(draw(st.lists(st.integers(1, largest), min_size=count, max_size=count)))
    widths = sorted(draw(st.lists(st.integers(1, largest), min_size=count, max_size=count)))
    return ScaleSchedule(list(zip(heights, widths, strict=True)))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (10, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),  # ties at k = 2 and 7, decided by float64 rounding
        (6, (0, 0, 1, 2, 3, 3)),
        (7, (0, 0, 1, 2, 2, 3, 3)),
        (12, (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)),
        (1, (0,)),
    ],
)
def test_phi_table(count: int, expected: tuple[int, ...]) -> None:
    assert ScaleSchedule(range(1, count + 1)).phi_index(4) == expected


@given(st.integers(1, 30), st.integers(1, 8))
def test_phi_index_never_falls_and_stays_in_range(count: int, phi_count: int) -> None:
    table = ScaleSchedule([1] * count).phi_index(phi_count)
    assert list(table) == sorted(table)
    assert set(table) <= set(range(phi_count))


def test_paper_schedules() -> None:
    assert ScaleSchedule(PAPER_SCALES_512).tokens == 2240
    assert ScaleSchedule(PAPER_SCALES_256).tokens == 680


@given(schedules())
def test_tokens_are_counted_once_each(schedule: ScaleSchedule) -> None:
    places = [range(*schedule.span(scale).indices(schedule.tokens)) for scale in range(len(schedule))]
    assert [place for span in places for place in span] == list(range(schedule.tokens))
    assert [len(span) for span in places] == [height * width for height, width in schedule]
    assert list(schedule.scale_of_token) == [scale for scale, span in enumerate(places) for _ in span]


@given(schedules())
def test_positions_share_the_finest_grid(schedule: ScaleSchedule) -> None:
    rows, columns = schedule.finest
    assert schedule.positions.shape == (schedule.tokens, 2)
    assert (schedule.positions >= 0).all()
    assert (schedule.positions < (rows, columns)).all()
    finest = schedule.positions[schedule.span(len(schedule) - 1)]
    assert np.array_equal(finest, np.stack(np.divmod(np.arange(rows * columns), columns), 1))


@given(schedules())
def test_plain_numbers_give_the_schedule_back(schedule: ScaleSchedule) -> None:
    again = ScaleSchedule(schedule.to_list())
    assert again == schedule
    assert hash(again) == hash(schedule)


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 1], [(1, 2, 3)], [(2, 2), (3, 1)], [-1]])
def test_bad_schedules_are_refused(sizes: list) -> None:
    with pytest.raises(UserError, match=r"scale schedule .* expected"):
        ScaleSchedule(sizes)


@given(schedules())
@settings(max_examples=30, deadline=None)
def test_a_schedule_stretches_and_comes_back(schedule: ScaleSchedule) -> None:
    height, width = schedule.finest
    assert schedule.scaled(schedule.finest) == schedule
    larger = schedule.scaled((3 * height, 2 * width))
    assert larger.sizes == tuple((3 * rows, 2 * columns) for rows, columns in schedule.sizes)
    assert larger.scaled(schedule.finest) == schedule
    assert schedule.scaled((1, 1)).sizes == ((1, 1),) * len(schedule)
