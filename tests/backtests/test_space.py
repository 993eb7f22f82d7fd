"""Search spaces: what is shipped loads, what is malformed says why, and what is drawn lies inside."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quant_assets.backtests.space import Dimension, Space, SpaceError, load_space
from quant_assets.strategies import STRATEGIES, YARDSTICKS, StrategyError, space_path, strategy_class

SHIPPED = [name for name in STRATEGIES if name not in YARDSTICKS]


def load(tmp_path: Path, text: str, strategy: str = "sma_crossover") -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(textwrap.dedent(text))
    return load_space(strategy, path)


def integers(name: str, low: int, high: int, step: int = 1) -> Dimension:
    return Dimension(name, "int", low, high, step)


# ------------------------------------------------------------------------------------------------------ shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_loads_and_every_set_makes_a_strategy(name: str) -> None:
    space = load_space(name)
    assert space.strategy == name
    assert len(space.heat_map) == 2
    cls = strategy_class(name)
    sets = space.grid(20_000)
    assert len(sets) > 10
    for parameters in [*sets, *space.random(50, seed=1)]:
        assert tuple(parameters) == space.names
        cls.create(**parameters)
    # One set is another strategy than the next.
    assert len({repr(cls.create(**p)) for p in sets}) == len(sets)


def test_every_file_beside_the_strategies_is_the_space_of_one() -> None:
    files = sorted(p.stem for p in space_path("sma_crossover").parent.glob("*.yaml"))
    assert files == sorted(SHIPPED)


# ---------------------------------------------------------------------------------------------------- malformed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no parameters"),
        ("parameters:", "has no parameters"),
        ("parameters: {}", "has no parameters"),
        ("- fast_period", "has no parameters"),
        ("parameters: [fast_period]", "has no parameters"),
        ("parameters: {fast_period: [", "is no YAML"),
        (
            "parameters: {quick_period: {type: int, low: 1, high: 2}}",
            "parameter quick_period: the strategy has no such parameter; it has enter_on_first_bar, fast_period",
        ),
        ("parameters: {fast_period: 3}", "type = None is not one of int, float, choice"),
        ("parameters: {fast_period: {type: whole, low: 1, high: 2}}", "type = 'whole' is not one of"),
        ("parameters: {fast_period: {type: int, low: 9, high: 5}}", "high = 5 is below low = 9"),
        ("parameters: {fast_period: {type: int, low: 5}}", "high = None must be given as a number"),
        ("parameters: {fast_period: {type: int, low: 1e1, high: 20}}", "low = 1e1 must be given as a number"),
        (
            "parameters: {fast_period: {type: int, low: 5, high: .inf}}",
            "high = inf must be given as a number",
        ),
        ("parameters: {fast_period: {type: int, low: .nan, high: 9}}", "low = nan must be given as a number"),
        ("parameters: {fast_period: {type: int, low: 5, high: 9, step: 0}}", "step = 0 must be above 0"),
        ("parameters: {fast_period: {type: int, low: 5, high: 9, step: -1}}", "step = -1 must be above 0"),
        (
            "parameters: {fast_period: {type: int, low: 5, high: 9, step: two}}",
            "step = two must be given as a",
        ),
        ("parameters: {fast_period: {type: int, low: 5, high: 9.5}}", "must be whole numbers"),
        ("parameters: {fast_period: {type: int, low: 5, high: 9, step: 0.5}}", "must be whole numbers"),
        ("parameters: {fast_period: {type: int, low: 5, high: 9, steps: 2}}", "unknown key steps"),
        ("parameters: {fast_period: {type: choice, low: 5, values: [2]}}", "unknown key low"),
        ("parameters: {fast_period: {type: choice, values: []}}", "must be a list that is not empty"),
        ("parameters: {fast_period: {type: choice, values: abc}}", "values = abc must be a list"),
        ("parameters: {fast_period: {type: choice}}", "values = None must be a list"),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, order: []}",
            "unknown key order; allowed are parameters, ordered, heat_map",
        ),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, heat_map: [fast_period, slow_period]}",
            "slow_period is not among the parameters fast_period",
        ),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, heat_map: [fast_period]}",
            "must be two names",
        ),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, heat_map: fast_period}",
            "must be two names",
        ),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, ordered: [[fast_period, slow_period]]}",
            "slow_period is not among the parameters fast_period",
        ),
        (
            "{parameters: {fast_period: {type: int, low: 5, high: 9}}, ordered: [fast_period, slow_period]}",
            "must be a list of pairs",
        ),
    ],
)
def test_what_is_malformed_says_why(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "space.yaml") in str(caught.value)


def test_no_file_and_no_strategy(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"flat has no search space; write .*flat\.yaml"):
        load_space("flat")
    with pytest.raises(SpaceError, match=r"nowhere\.yaml \(sma_crossover\.yaml explains the format\)"):
        load_space("sma_crossover", tmp_path / "nowhere.yaml")
    with pytest.raises(StrategyError, match="no strategy 'made_up'"):
        load_space("made_up")


# ------------------------------------------------------------------------------------------------------- grid


def test_the_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        """
        parameters:
          fast_period: {type: int, low: 5, high: 16, step: 5}
          slow_period: {type: int, low: 10, high: 30, step: 10}
          size: {type: float, low: 0.1, high: 0.3, step: 0.1}
          enter_on_first_bar: {type: choice, values: [true, false]}
        ordered: [[fast_period, slow_period]]
        """,
    )
    fast, slow, size, first = (d.grid for d in space.dimensions)
    assert fast == (5, 10, 15)
    assert slow == (10, 20, 30)
    assert size == (0.1, 0.2, 0.3)  # exactly, and the upper bound is in
    assert first == (True, False)
    assert [d.count for d in space.dimensions] == [3, 3, 3, 2]
    assert space.grid_size == 54
    wanted = [
        {"fast_period": f, "slow_period": s, "size": z, "enter_on_first_bar": e}
        for f, s, z, e in itertools.product(fast, slow, size, first)
        if f < s
    ]
    assert space.grid(54) == wanted
    assert len(wanted) == 42
    for parameters in wanted:
        assert [type(v) for v in parameters.values()] == [int, int, float, bool]


@given(low=st.floats(-10, 10), steps=st.integers(0, 60), step=st.floats(1e-3, 5))
def test_a_float_grid_has_both_ends_and_equal_steps(low: float, steps: int, step: float) -> None:
    dimension = Dimension("x", "float", low, low + steps * step, step)
    values = dimension.grid
    assert len(values) == dimension.count == steps + 1
    assert values[0] == pytest.approx(low, abs=1e-11)
    assert values[-1] == pytest.approx(low + steps * step, abs=1e-11)
    assert all(b - a == pytest.approx(step, abs=1e-9) for a, b in itertools.pairwise(values))


def test_a_step_that_misses_the_upper_bound_stays_below_it() -> None:
    assert Dimension("x", "float", 0.0, 1.0, 0.3).grid == (0.0, 0.3, 0.6, 0.9)
    assert integers("x", 1, 10, 4).grid == (1, 5, 9)
    assert integers("x", 3, 3).grid == (3,)


def test_a_grid_that_explodes_says_where_it_does() -> None:
    space = Space("sma_crossover", (integers("fast_period", 1, 200), integers("slow_period", 1, 300)))
    assert len(space.grid(60_000)) == 60_000
    with pytest.raises(SpaceError) as caught:
        space.grid(59_999)
    message = str(caught.value)
    assert "60,000 sets (fast_period 200 x slow_period 300), more than 59,999" in message
    assert "raise most_trials, or use method random or bayesian" in message
    # It is counted, not built: this one would fill the memory.
    endless = Space("sma_crossover", (Dimension("size", "float", 0.0, 1.0, 1e-15),) * 3)
    with pytest.raises(SpaceError, match="more than 20,000"):
        endless.grid(20_000)


def test_an_order_that_nothing_satisfies(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        """
        parameters:
          fast_period: {type: int, low: 50, high: 60}
          slow_period: {type: int, low: 20, high: 50}
        ordered: [[fast_period, slow_period]]
        """,
    )
    with pytest.raises(SpaceError, match="the grid of sma_crossover is empty: no set satisfies ordered"):
        space.grid(20_000)
    with pytest.raises(SpaceError, match="no set of sma_crossover satisfies ordered"):
        list(space.random(5, seed=0))


# ------------------------------------------------------------------------------------------------------ random


def test_draws_are_distinct_and_reproducible() -> None:
    space = load_space("sma_crossover")
    drawn = list(space.random(500, seed=7))
    assert len({tuple(p.values()) for p in drawn}) == 500
    assert list(space.random(500, seed=7)) == drawn
    assert list(space.random(500, seed=8)) != drawn
    # A longer search goes on where the shorter one ended.
    assert list(space.random(120, seed=7)) == drawn[:120]
    assert all(p["fast_period"] < p["slow_period"] for p in drawn)
    # Between the steps of the grid, and both bounds.
    assert {p["fast_period"] for p in drawn} == set(range(5, 51))


def test_a_small_space_is_drawn_whole() -> None:
    space = Space(
        "sma_crossover",
        (integers("fast_period", 1, 3), integers("slow_period", 1, 3)),
        (("fast_period", "slow_period"),),
    )
    drawn = list(space.random(50, seed=0))
    assert sorted(tuple(p.values()) for p in drawn) == [(1, 2), (1, 3), (2, 3)]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    dimensions = []
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        kind = draw(st.sampled_from(["int", "float", "choice"]))
        if kind == "choice":
            values = draw(
                st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=5, unique=True)
            )
            dimensions.append(Dimension(name, kind, values=tuple(values)))
        else:
            low = draw(st.integers(-50, 50) if kind == "int" else st.floats(-50, 50))
            width = draw(st.integers(0, 60) if kind == "int" else st.floats(0, 60))
            step = draw(st.integers(1, 9) if kind == "int" else st.floats(0.5, 9))
            dimensions.append(Dimension(name, kind, float(low), float(low + width), float(step)))
    names = [d.name for d in dimensions]
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda p: p[0] != p[1])
    ordered = draw(st.lists(pairs, max_size=2)) if len(names) > 1 else []
    return Space("any", tuple(dimensions), tuple(ordered))


def inside(space: Space, parameters: dict[str, Any]) -> bool:
    """Within bounds, of its type, and in order; written anew."""
    for d in space.dimensions:
        value = parameters[d.name]
        if d.type == "choice":
            if value not in d.values:
                return False
        elif not (d.low <= value <= d.high and isinstance(value, int if d.type == "int" else float)):
            return False
    return list(parameters) == [d.name for d in space.dimensions] and all(
        parameters[a] < parameters[b] for a, b in space.ordered
    )


@given(space=spaces(), seed=st.integers(0, 2**32 - 1))
def test_every_drawn_set_is_inside_and_allowed(space: Space, seed: int) -> None:
    try:
        drawn = list(space.random(20, seed))
    except SpaceError:
        assume(False)
    assert all(inside(space, parameters) for parameters in drawn)
    assert len({tuple(p.values()) for p in drawn}) == len(drawn) <= 20


@given(space=spaces())
def test_every_set_of_a_grid_is_inside_and_allowed(space: Space) -> None:
    assume(space.grid_size <= 2_000)
    try:
        sets = space.grid(2_000)
    except SpaceError:
        assert space.ordered
        return
    loose = Space(space.strategy, tuple(_wider(d) for d in space.dimensions), space.ordered)
    assert all(inside(loose, parameters) for parameters in sets)
    assert len({tuple(p.values()) for p in sets}) == len(sets)


def _wider(dimension: Dimension) -> Dimension:
    """Grid values are rounded to twelve decimals, so the last one may lie a hair outside."""
    if dimension.type != "float":
        return dimension
    return Dimension(dimension.name, "float", dimension.low - 1e-6, dimension.high + 1e-6, dimension.step)
