"""Who becomes champion. Pure.

Belongs here: the rule that compares a challenger with the champion on the same unseen rows. Does not belong here:
aliases in the registry (the asset moves them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant_assets.models.evaluation import (
    BLOCK_SESSIONS,
    Interval,
    block_interval,
    brier,
    mean_interval,
    session_resamples,
)

# A block outlasts the five sessions that a label looks ahead; fewer than four say nothing of how blocks differ.
SHORTEST_BLOCK = 6
FEWEST_BLOCKS = 4


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison.

    Attributes:
        promote: whether the challenger becomes champion.
        reason: why, in a sentence with the numbers.
        improvement: mean difference in what is compared (above 0: the challenger is better).
    """

    promote: bool
    reason: str
    improvement: Interval | None = None


def first_champion() -> Verdict:
    """There is nobody to beat: the first model serves, whatever its quality, and its metrics say what it is worth."""
    return Verdict(True, "no champion yet: the first model takes the place")


def incomparable(why: str) -> Verdict:
    """The champion cannot be run on today's features, so it cannot serve either."""
    return Verdict(True, f"the champion cannot be run any more ({why}), so the challenger takes its place")


def judge(
    y: np.ndarray,
    challenger: np.ndarray,
    champion: np.ndarray,
    session: np.ndarray,
    confidence: float = 0.95,
) -> Verdict:
    """Compare on the same out-of-sample rows by the Brier score, averaged over both outputs.

    The challenger is promoted when the lower end of the improvement's interval is above 0: a difference that noise
    explains does not move production.

    Args:
        y: shape (rows, 2).
        challenger, champion: probabilities, shape (rows, 2), on the same rows, which neither was trained on.
        session: shape (rows,); compared in blocks of an eighth of them, 6 to 20 sessions.
        confidence: of the two-sided interval.
    """
    if not len(y):
        return Verdict(
            False, "no out-of-sample rows that neither model has seen: the challenger stays challenger"
        )
    sessions = len(np.unique(session))
    block = min(max(sessions // 8, SHORTEST_BLOCK), BLOCK_SESSIONS)
    if sessions < FEWEST_BLOCKS * block:
        return Verdict(
            False,
            f"{sessions} unseen sessions are too few to judge by ({FEWEST_BLOCKS * block} are needed): the challenger stays challenger",
        )
    difference = (brier(y, champion) - brier(y, challenger)).mean(axis=1)
    improvement = block_interval(difference, session, block, confidence)
    numbers = (
        f"Brier score improves by {improvement.value:+.5f} "
        f"[{improvement.low:+.5f}, {improvement.high:+.5f}] at {confidence:.0%} on {len(y)} unseen rows"
    )
    if improvement.low > 0:
        return Verdict(True, f"better than the champion: {numbers}", improvement)
    return Verdict(False, f"not better than the champion: {numbers}", improvement)


def judge_scores(
    challenger: np.ndarray,
    champion: np.ndarray,
    unit: str,
    group: np.ndarray,
    confidence: float = 0.95,
    block: int = 1,
    seed: int = 0,
) -> Verdict:
    """Compare two policies by what they got on the same paths or periods, which neither was trained on.

    As `judge`: promoted when the lower end of the interval of the mean difference is above 0.

    Args:
        challenger, champion: scores, above is better, shape (paths or periods,), in the same order.
        unit: of the scores, for the sentence.
        group: what each score belongs to, shape (paths or periods,); groups stay whole.
        confidence: of the two-sided interval.
        block: groups in a row that belong together; 1 for independent ones, which are resampled.
        seed: of the resampling.
    """
    if not len(challenger):
        return Verdict(False, "nothing that neither agent has seen: the challenger stays challenger")
    if block > 1 and len(np.unique(group)) < FEWEST_BLOCKS * block:
        return Verdict(
            False,
            f"{len(np.unique(group))} unseen periods are too few to judge by ({FEWEST_BLOCKS * block} are needed): the challenger "
            "stays challenger",
        )
    difference = challenger - champion
    if block > 1:
        improvement = block_interval(difference, group, block, confidence)
    else:
        improvement = mean_interval(difference, session_resamples(group, seed, block_sessions=1), confidence)
    numbers = (
        f"improves by {improvement.value:+.4g} {unit} [{improvement.low:+.4g}, {improvement.high:+.4g}] at "
        f"{confidence:.0%} on {len(challenger)} unseen paths or periods"
    )
    if improvement.low > 0:
        return Verdict(True, f"better than the champion: {numbers}", improvement)
    return Verdict(False, f"not better than the champion: {numbers}", improvement)
