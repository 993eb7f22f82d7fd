"""What an answerer raises when it gives no answer. Pure.

Belongs here: the two ways to fail that a client can tell apart. Does not belong here: HTTP (`app.py` turns them into statuses).
"""

from __future__ import annotations


class RequestRefused(ValueError):
    """The request cannot be answered as it is, and would not be the second time either: status 400.

    Attributes:
        field: path of the value that is wrong, such as `shares` or `rows[3].features.roc_2_pct`; '' for the request as a whole.
        reason: the value and what is allowed.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class InvalidAnswer(RuntimeError):
    """The model's answer is wrong in itself, whatever was asked: status 500, and an alarm for whoever rolls it out.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
