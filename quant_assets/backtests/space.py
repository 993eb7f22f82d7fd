"""Search spaces: the file beside a strategy, and the parameter sets in it. Pure.

Belongs here: reading and checking `quant_assets/strategies/<strategy>.yaml`, enumerating and drawing sets. Does not belong
here: evaluating them (`sweep.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant_assets.strategies import space_path, strategy_class


class SpaceError(ValueError):
    """A search space is empty, too large or malformed. The message names the file, the parameter and what is allowed."""


@dataclass(frozen=True)
class Dimension:
    """One parameter.

    Attributes:
        name: field of the strategy.
        type: `int`, `float` or `choice`.
        low, high: bounds, both included.
        step: of the grid.
        values: of a choice.
    """

    name: str
    type: str
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0
    values: tuple[Any, ...] = ()

    @property
    def count(self) -> int:
        """How many values the grid has."""
        if self.type == "choice":
            return len(self.values)
        # The hair keeps the upper bound when the steps miss it by rounding.
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    @property
    def grid(self) -> tuple[Any, ...]:
        """Grid values in order."""
        if self.type == "choice":
            return self.values
        raw = [self.low + i * self.step for i in range(self.count)]
        return tuple(int(v) for v in raw) if self.type == "int" else tuple(round(v, 12) for v in raw)


@dataclass(frozen=True)
class Space:
    """The sets that a sweep of one strategy may try.

    Attributes:
        strategy: its name.
        dimensions: in the order of the file.
        ordered: pairs of names; the first value must be below the second.
        heat_map: two names, for the plot; empty when the space has one dimension.
    """

    strategy: str
    dimensions: tuple[Dimension, ...]
    ordered: tuple[tuple[str, str], ...] = ()
    heat_map: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names."""
        return tuple(d.name for d in self.dimensions)

    @property
    def grid_size(self) -> int:
        """Sets of the full grid before `ordered` drops some."""
        return math.prod(d.count for d in self.dimensions)

    def allows(self, parameters: dict[str, Any]) -> bool:
        """Whether every ordered pair is in order."""
        return all(parameters[a] < parameters[b] for a, b in self.ordered)

    def grid(self, most: int) -> list[dict[str, Any]]:
        """Every allowed set, in a fixed order.

        Raises:
            SpaceError: none, or more than `most`.
        """
        if self.grid_size > most:
            sizes = " x ".join(f"{d.name} {d.count}" for d in self.dimensions)
            raise SpaceError(
                f"the grid of {self.strategy} has {self.grid_size:,} sets ({sizes}), more than {most:,}. Widen the "
                f"steps in {self.strategy}.yaml, raise most_trials, or use method random or bayesian."
            )
        sets = [
            dict(zip(self.names, values, strict=True))
            for values in itertools.product(*(d.grid for d in self.dimensions))
        ]
        allowed = [s for s in sets if self.allows(s)]
        if not allowed:
            raise SpaceError(
                f"the grid of {self.strategy} is empty: no set satisfies ordered = {self.ordered}"
            )
        return allowed

    def random(self, trials: int, seed: int) -> Iterator[dict[str, Any]]:
        """`trials` distinct allowed sets drawn uniformly (fewer when the space is smaller).

        Raises:
            SpaceError: no allowed set was found.
        """
        rng = np.random.default_rng(seed)
        seen: set[tuple[Any, ...]] = set()
        misses = 0
        while len(seen) < trials and misses < 1000 + 10 * trials:
            drawn = {d.name: self._draw(d, rng) for d in self.dimensions}
            key = tuple(drawn.values())
            if key in seen or not self.allows(drawn):
                misses += 1
                continue
            seen.add(key)
            yield drawn
        if not seen:
            raise SpaceError(f"no set of {self.strategy} satisfies ordered = {self.ordered}")

    @staticmethod
    def _draw(dimension: Dimension, rng: np.random.Generator) -> Any:
        if dimension.type == "choice":
            return dimension.values[int(rng.integers(len(dimension.values)))]
        if dimension.type == "int":
            return int(rng.integers(int(dimension.low), int(dimension.high) + 1))
        return float(rng.uniform(dimension.low, dimension.high))


def load_space(strategy: str, path: Path | None = None) -> Space:
    """Read `quant_assets/strategies/<strategy>.yaml`.

    Raises:
        SpaceError: no file, an unknown parameter, an empty or inverted range.
    """
    import yaml

    path = path or space_path(strategy)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SpaceError(
            f"{strategy} has no search space; write {path} (sma_crossover.yaml explains the format)"
        ) from None
    except yaml.YAMLError as error:
        raise SpaceError(f"{path} is no YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("parameters"), dict) or not raw["parameters"]:
        raise SpaceError(f"{path} has no parameters: there is nothing to search")
    if unknown := sorted(set(raw) - {"parameters", "ordered", "heat_map"}):
        raise SpaceError(
            f"{path}: unknown key {', '.join(unknown)}; allowed are parameters, ordered, heat_map"
        )
    fields = {f.name for f in dataclasses.fields(strategy_class(strategy))}
    dimensions = tuple(_dimension(path, name, given, fields) for name, given in raw["parameters"].items())
    names = {d.name for d in dimensions}
    pairs, plotted = raw.get("ordered") or [], raw.get("heat_map") or []
    if not (isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)):
        raise SpaceError(f"{path}: ordered = {pairs} must be a list of pairs of names")
    if not (isinstance(plotted, list) and len(plotted) in (0, 2)):
        raise SpaceError(f"{path}: heat_map = {plotted} must be two names")
    ordered, heat_map = tuple((str(a), str(b)) for a, b in pairs), tuple(map(str, plotted))
    if stray := sorted(({n for pair in ordered for n in pair} | set(heat_map)) - names):
        raise SpaceError(f"{path}: {', '.join(stray)} is not among the parameters {', '.join(sorted(names))}")
    return Space(strategy, dimensions, ordered, heat_map)


def _dimension(path: Path, name: str, given: Any, fields: set[str]) -> Dimension:
    where = f"{path}, parameter {name}"
    if name not in fields:
        raise SpaceError(f"{where}: the strategy has no such parameter; it has {', '.join(sorted(fields))}")
    kind = given.get("type") if isinstance(given, dict) else None
    wanted = {"int": {"low", "high", "step"}, "float": {"low", "high", "step"}, "choice": {"values"}}
    if kind not in wanted:
        raise SpaceError(f"{where}: type = {kind!r} is not one of {', '.join(wanted)}")
    if unknown := sorted(set(given) - wanted[kind] - {"type"}):
        raise SpaceError(f"{where}: unknown key {', '.join(unknown)}")
    if kind == "choice":
        if not (isinstance(given.get("values"), list) and given["values"]):
            raise SpaceError(f"{where}: values = {given.get('values')} must be a list that is not empty")
        return Dimension(name, kind, values=tuple(given["values"]))
    given = {"step": 1, **given}
    for bound in ("low", "high", "step"):
        if not (isinstance(given.get(bound), int | float) and math.isfinite(given[bound])):
            raise SpaceError(f"{where}: {bound} = {given.get(bound)} must be given as a number")
    low, high, step = given["low"], given["high"], given["step"]
    if high < low:
        raise SpaceError(f"{where}: high = {high} is below low = {low}")
    if step <= 0:
        raise SpaceError(f"{where}: step = {step} must be above 0")
    if kind == "int" and any(v != int(v) for v in (low, high, step)):
        raise SpaceError(f"{where}: low, high and step of an int must be whole numbers")
    return Dimension(name, kind, float(low), float(high), float(step))
