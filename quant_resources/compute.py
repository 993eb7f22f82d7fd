"""Where heavy loops run: how many workers, and through which joblib backend.

Belongs here: the choice. Does not belong here: the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Compute:
    """A pool of workers.

    Attributes:
        backend: joblib's: `loky` (processes of this machine), `threading` (for compiled code that runs without
            Python's lock), `sequential` (in this thread).
        jobs: workers; -1 for one per core.
    """

    backend: Literal["loky", "threading", "sequential"] = "loky"
    jobs: int = -1

    @property
    def workers(self) -> int:
        """How many run at once."""
        if self.backend == "sequential":
            return 1
        return len(os.sched_getaffinity(0)) if self.jobs < 0 else self.jobs

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """`work` of every item, as soon as it is done, in any order; an exception of a worker is raised here."""
        if self.workers == 1:
            yield from map(work, items)
            return
        from joblib import Parallel, delayed

        parallel = Parallel(
            n_jobs=self.workers,
            backend=self.backend,
            return_as="generator_unordered",
            pre_dispatch="2*n_jobs",
        )
        yield from parallel(delayed(work)(item) for item in items)
