"""How often a vendor is asked: never faster than the plan, never more than the day, whoever asks."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from quant_resources.sources.budget import BURST_SECONDS, Budget, QuotaExhausted


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, at: str = "2024-06-28T16:00:00+00:00") -> None:
        self.now = dt.datetime.fromisoformat(at).timestamp()
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    @staticmethod
    def at(text: str) -> dt.datetime:
        return dt.datetime.fromisoformat(text)

    def set(self, at: str) -> None:
        self.now = dt.datetime.fromisoformat(at).timestamp()


def make(path: Path, clock: Clock, per_minute: float = 60, per_day: int | None = None) -> Budget:
    return Budget(path / "state.json", per_minute, per_day, now=clock, sleep=clock.sleep)


def test_after_a_pause_six_seconds_worth_go_at_once_and_then_one_a_turn(tmp_path: Path) -> None:
    clock = Clock()
    budget = make(tmp_path, clock, per_minute=60)
    for _ in range(6):
        budget.take()
    assert clock.slept == 0
    for _ in range(4):
        budget.take()
    assert clock.slept == pytest.approx(4.0)


def test_a_slow_plan_has_one_request_at_once(tmp_path: Path) -> None:
    clock = Clock()
    budget = make(tmp_path, clock, per_minute=5)
    budget.take()
    assert clock.slept == 0
    budget.take()
    assert clock.slept == pytest.approx(12.0)


@given(
    per_minute=st.sampled_from([1.0, 5.0, 75.0, 1200.0]),
    pauses=st.lists(st.floats(0, 90), min_size=5, max_size=40),
)
@effort(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_stretch_of_time_has_more_requests_than_burst_and_rate(
    tmp_path: Path, per_minute: float, pauses: list[float]
) -> None:
    clock = Clock()
    (tmp_path / "state.json").unlink(missing_ok=True)
    budget = make(tmp_path, clock, per_minute)
    at = []
    for pause in pauses:
        clock.now += pause
        budget.take()
        at.append(clock.now)
    burst = max(1.0, per_minute / 60 * BURST_SECONDS)
    for i in range(len(at)):
        for j in range(i, len(at)):
            assert j - i + 1 <= burst + (at[j] - at[i]) * per_minute / 60 + 1e-3


def test_the_day_ends_at_midnight_in_new_york(tmp_path: Path) -> None:
    clock = Clock("2024-06-28T16:00:00+00:00")
    budget = make(tmp_path, clock, per_minute=6000, per_day=3)
    for _ in range(3):
        budget.take()
    assert (budget.left(), budget.used()) == (0, 3)
    with pytest.raises(QuotaExhausted, match="3 of 3 requests") as refused:
        budget.take()
    assert refused.value.until == dt.datetime(2024, 6, 29, 4, 0, tzinfo=dt.UTC)
    assert budget.used() == 3
    clock.set("2024-06-29T03:59:59+00:00")
    with pytest.raises(QuotaExhausted):
        budget.take()
    clock.set("2024-06-29T04:00:00+00:00")
    assert budget.left() == 3
    budget.take()
    assert budget.used() == 1


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2024-03-09T20:00:00+00:00", "2024-03-10T05:00:00+00:00"),  # the night before clocks go forward
        ("2024-03-10T20:00:00+00:00", "2024-03-11T04:00:00+00:00"),
        ("2024-11-03T20:00:00+00:00", "2024-11-04T05:00:00+00:00"),  # the day they went back
    ],
)
def test_the_next_day_begins_where_the_clocks_say(tmp_path: Path, at: str, until: str) -> None:
    with pytest.raises(QuotaExhausted) as refused:
        make(tmp_path, Clock(at), per_day=0).take()
    assert refused.value.until == dt.datetime.fromisoformat(until)


def test_a_vendors_word_that_the_day_is_used_up_holds_for_four_hours_then_one_request_finds_out(
    tmp_path: Path,
) -> None:
    clock = Clock("2024-06-28T04:05:00+00:00")  # 00:05 in New York: the vendor's day may end hours later
    budget = make(tmp_path, clock, per_day=None)
    budget.take()
    assert (budget.left(), budget.closed_until()) == (None, None)
    assert budget.exhaust("the vendor says: 25 a day").until == clock.at("2024-06-28T08:05:00+00:00")
    assert (budget.left(), budget.closed_until()) == (0, clock.at("2024-06-28T08:05:00+00:00"))
    clock.set("2024-06-28T08:04:59+00:00")
    with pytest.raises(QuotaExhausted, match="25 a day") as refused:
        make(tmp_path, clock).take()
    assert refused.value.until == clock.at("2024-06-28T08:05:00+00:00")
    clock.set("2024-06-28T08:05:00+00:00")
    make(tmp_path, clock).take()
    assert budget.used() == 2  # what was refused by us was not counted
    budget.exhaust("still")
    assert budget.closed_until() == clock.at("2024-06-28T12:05:00+00:00")


def test_a_refusal_ends_at_midnight_in_new_york_at_the_latest(tmp_path: Path) -> None:
    clock = Clock("2024-06-29T03:00:00+00:00")
    budget = make(tmp_path, clock, per_day=None)
    assert budget.exhaust("enough").until == clock.at("2024-06-29T04:00:00+00:00")
    clock.set("2024-06-29T04:00:00+00:00")
    budget.take()


def test_a_clock_that_was_set_back_stretches_no_refusal(tmp_path: Path) -> None:
    clock = Clock("2024-06-28T20:00:00+00:00")
    budget = make(tmp_path, clock)
    budget.exhaust("enough")
    clock.set("2024-06-28T06:00:00+00:00")
    budget.take()


def test_two_that_share_a_file_share_the_allowance(tmp_path: Path) -> None:
    clock = Clock()
    one, other = make(tmp_path, clock, per_day=5), make(tmp_path, clock, per_day=5)
    for budget in (one, other, one, other, one):
        budget.take()
    assert one.left() == other.left() == 0
    with pytest.raises(QuotaExhausted):
        other.take()


def test_processes_together_take_no_more_than_the_day_has(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from quant_resources.sources.budget import Budget, QuotaExhausted\n"
        "budget, taken = Budget(Path(sys.argv[1]), 60000, 40), 0\n"
        "try:\n"
        "    while True:\n"
        "        budget.take(); taken += 1\n"
        "except QuotaExhausted:\n"
        "    print(taken)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state.json")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert sum(int(process.communicate(timeout=60)[0]) for process in running) == 40


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '{"day": 5}'])
def test_a_torn_state_begins_to_count_again(tmp_path: Path, content: str) -> None:
    clock = Clock()
    (tmp_path / "state.json").write_text(content)
    budget = make(tmp_path, clock, per_day=2)
    budget.take()
    assert budget.left() == 1


def test_a_clock_that_was_set_back_makes_nobody_wait_for_it(tmp_path: Path) -> None:
    clock = Clock("2024-06-28T16:00:00+00:00")
    budget = make(tmp_path, clock, per_minute=60)
    budget.take()
    clock.set("2024-06-28T06:00:00+00:00")
    for _ in range(5):
        budget.take()
    assert clock.slept <= 6
