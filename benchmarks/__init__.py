"""One runnable module per hot path: `python -m benchmarks.NAME` prints a table and, last, one line of JSON.

Belongs here: what every benchmark needs (timing in turn, the machine in words, more symbols from the sample, the last
line). Does not belong here: any work that is measured; this module imports nothing of the project.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa


def in_turn(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each side, run one after the other `repeats` times after one warm-up each.

    Whoever shares the machine slows all sides alike; the first one changes from round to round, so no side always
    follows the same other. The collector runs before each measurement and rests during it.
    """
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            gc.collect()
            gc.disable()
            try:
                started = time.perf_counter()
                sides[name]()
                seconds[name].append(time.perf_counter() - started)
            finally:
                gc.enable()
    return seconds


def spread(values: Sequence[float], unit: str = "s") -> dict[str, Any]:
    """Median, smallest and largest value with their unit."""
    return {
        "median": round(statistics.median(values), 5),
        "min": round(min(values), 5),
        "max": round(max(values), 5),
        "unit": unit,
    }


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; the first one left, the others right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for i, row in enumerate(cells):
        first, *others = (c.ljust(w) if j == 0 else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths)))  # noqa: B905
        print("  " + "  ".join([first, *others]), flush=True)
        if i == 0:
            print("  " + "  ".join("-" * w for w in widths), flush=True)


def replicate(table: pa.Table, copies: int, *, keys: Sequence[str] = ("symbol",)) -> pa.Table:
    """The rows of `table` once per copy; copy 7 of AAPL is called AAPL007.

    Args:
        table: has the columns `keys`, all of them strings.
        copies: how many.
        keys: columns whose values gain the copy's number (an article's id as well as its symbol).
    """
    import pyarrow.compute as pc

    parts = []
    for i in range(copies):
        part = table
        for key in keys:
            named = pc.binary_join_element_wise(part[key], f"{i:03d}", "")
            part = part.set_column(part.column_names.index(key), key, named)
        parts.append(part)
    return pa.concat_tables(parts).combine_chunks()


def machine() -> str:
    """Processor, cores that this process may use, memory, operating system and Python, in words."""
    model = platform.processor() or platform.machine()
    memory = ""
    try:
        with open("/proc/cpuinfo") as file:
            model = next((x.split(":")[1].strip() for x in file if x.startswith("model name")), model)
        with open("/proc/meminfo") as file:
            memory = f", {int(file.readline().split()[1]) / 2**20:.0f} GiB"
    except OSError:  # no Linux
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores{memory}, {platform.system()}, Python {platform.python_version()}"


def last_line(
    name: str,
    *,
    ratio: float,
    ratios: Mapping[str, float],
    ours: Mapping[str, object],
    theirs: Mapping[str, object],
    work: str,
    equal: bool | None,
    **more: object,
) -> None:
    """Print the one line of JSON that ends every benchmark.

    Args:
        name: the module.
        ratio: ours over theirs for the headline, above 1 is better.
        ratios: the same by case.
        ours, theirs: as `spread` gives them.
        work: what was measured, in words, with sizes.
        equal: results of both sides were compared and are equal; None where there is nothing to compare.
        more: further entries, such as `equal_how`.
    """
    line = {
        "name": name,
        "ratio": round(ratio, 4),
        "ratios": {k: round(v, 4) for k, v in ratios.items()},
        "ours": dict(ours),
        "theirs": dict(theirs),
        "work": work,
        "machine": machine(),
        "equal": equal,
        **more,
    }
    print(json.dumps(line), flush=True)
