"""What a bundle has to do before it gets any traffic. Pure: no Dagster.

Belongs here: a process of the app for one bundle, requests that must be answered and requests that must be refused, what makes an
answer right, and the comparison with what serves now on captured requests. Does not belong here: traffic and alarms (the endpoint) and
who deploys (`endpoint_assets.py`).

Answers are judged against the exchange's calendar and by adding up, not by the code that made them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quant_resources.calendar import TradingCalendar
from quant_resources.endpoints import JSON, CapturedRequest, EndpointError

READY_SECONDS = 30.0
REQUEST_SECONDS = 10.0
NOT_READY = 503  # what /ping says when the model fails the app's self-test
COST_TOLERANCE_BPS = 1e-6
# A canary whose plans cost so much more than VWAP, beyond what those of the current config do, is no improvement, whatever its gate
# said. Costs themselves are not compared: they are expected in each bundle's own market.
MOST_EXTRA_COST_BPS = 2.0


class BundleRefused(EndpointError):
    """The app starts and refuses the bundle: another machine or another day would change nothing."""


@dataclass(frozen=True)
class Trial:
    """One request and what has to come of it.

    Attributes:
        what: in words.
        body: of the request.
        status: that it must be answered with.
        content_type: of the request.
    """

    what: str
    body: bytes
    status: int = 200
    content_type: str = JSON


@dataclass
class Preflight:
    """What came of it.

    Attributes:
        problems: one row each: what was tried, what was wrong; empty is passed.
        trials: smoke and contract requests that were made.
        replayed: captured requests that were asked again.
        outside: captured requests that this bundle does not take: of other inputs, of tickers that it does not know.
        comparison: measures of new against current answers on those, one row each.
        latency_ms: of all 200 answers.
        ready_seconds: from the start of the process to its first answer.
    """

    problems: list[dict[str, object]] = field(default_factory=list)
    trials: int = 0
    replayed: int = 0
    outside: int = 0
    comparison: list[dict[str, object]] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    ready_seconds: float = math.nan

    @property
    def passed(self) -> bool:
        """Whether the bundle may get traffic."""
        return not self.problems

    def summary(self) -> str:
        """In a sentence."""
        if self.problems:
            first = self.problems[0]
            return f"{len(self.problems)} problems, the first: {first['tried']}: {first['problem']}"
        p99 = float(np.quantile(self.latency_ms, 0.99)) if self.latency_ms else math.nan
        left_out = f" ({self.outside} of other inputs or tickers left out)" if self.outside else ""
        return (
            f"{self.trials} contract requests and {self.replayed} captured ones{left_out} answered as they must be, "
            f"p99 {p99:.1f} ms, ready after {self.ready_seconds:.1f} s"
        )


def run_preflight(
    bundle: Path,
    description: Mapping[str, Any],
    calendar: TradingCalendar,
    examples: Sequence[bytes],
    captured: Sequence[CapturedRequest],
    progress: Callable[[str], None] | None = None,
) -> Preflight:
    """Start the app on a bundle and try it.

    Args:
        bundle: the archive.
        description: its `bundle.json`.
        calendar: the exchange's, to judge timestamps by.
        examples: bodies of signal requests that must be answered; execution requests are made here.
        captured: requests that the current config answered, with its answers.
        progress: told each stage in a line.

    Raises:
        BundleRefused: the app does not serve the bundle; with the end of what it said.
        EndpointError: it did not start in time.
    """
    say = progress or (lambda _: None)
    done = Preflight()
    started = time.monotonic()
    with app_process(bundle) as client:
        done.ready_seconds = time.monotonic() - started
        say(f"preflight: the app is ready after {done.ready_seconds:.1f} s")
        if description["kind"] == "execution":
            trials = execution_trials(description, calendar)
        else:
            trials = [Trial(f"rows {i}", body) for i, body in enumerate(examples)] + refused_anywhere()
        if not any(trial.status == 200 for trial in trials):
            done.problems.append(
                {"tried": "contract", "problem": "no example: there are no stored rows to ask about"}
            )
        for trial in trials:
            _try(done, client, trial, description, calendar)
        say(f"preflight: {done.trials} contract requests, {len(done.problems)} problems")
        _replay(done, client, captured, description, calendar)
        say(f"preflight: {done.replayed} captured requests replayed, {len(done.problems)} problems")
    return done


@contextlib.contextmanager
def app_process(bundle: Path) -> Iterator[Any]:
    """The app on a bundle in a process of its own; gives an `httpx.Client` and ends the process.

    Raises:
        BundleRefused: it ended by itself, or its self-test failed.
        EndpointError: it did not become ready in time.
    """
    import httpx

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        tempfile.TemporaryFile() as said,
    ):
        port = listening.getsockname()[1]
        command = [sys.executable, "-P", "-m", "quant_assets.serving", "--bundle", str(bundle)]
        process = subprocess.Popen(
            [*command, "--fd", str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_SECONDS) as client:
                _wait_until_ready(process, client, said, bundle)
                yield client
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], client: Any, said: Any, bundle: Path) -> None:
    import httpx

    deadline, why, refused = time.monotonic() + READY_SECONDS, "no answer", False
    while time.monotonic() < deadline:
        if process.poll() is not None:
            # A signal is somebody else's doing; an exit code is the app's own word.
            why, refused = f"it ended with exit code {process.returncode}", process.returncode > 0
            break
        try:
            answer = client.get("/ping", timeout=1.0)
            if answer.status_code == 200:
                return
            why = f"/ping answers {answer.status_code}: {answer.text[:200]}"
            if refused := answer.status_code == NOT_READY:
                break
        except httpx.TransportError as error:
            why = f"{type(error).__name__}: {error}"
        time.sleep(0.02)
    said.seek(0)
    raise (BundleRefused if refused else EndpointError)(
        f"the app does not serve {bundle}: {why}. It said: {said.read()[-2000:].decode(errors='replace').strip() or 'nothing'}"
    )


# -- what must be answered, what must be refused -----------------------------------------------------------------------


def execution_trials(description: Mapping[str, Any], calendar: TradingCalendar) -> list[Trial]:
    """Orders of every ticker over every kind of start, and requests that must be refused."""
    tickers = sorted(description["markets"])
    starts = _starts(calendar)
    trials = []
    for ticker in tickers:
        # Small parts of what even the quietest minute trades, so that no order is too large for its horizon.
        least = min(description["markets"][ticker]["volume_shares"])
        for minutes, part in ((390, 0.0), (390, 0.02), (1, 0.1), (137, 0.1)):
            shares = max(int(part * least * minutes), 1)
            for what, start in starts.items():
                body = {
                    "ticker": ticker,
                    "shares": shares,
                    "horizon_minutes": minutes,
                    "start": start.isoformat(),
                }
                trials.append(
                    Trial(f"{shares} {ticker} in {minutes} minutes from {what}", json.dumps(body).encode())
                )
    good = {"ticker": tickers[0], "shares": 1, "start": starts["the open"].isoformat()}
    wrong: list[tuple[str, dict[str, object]]] = [
        ("an unknown ticker", {"ticker": "NOSUCH"}),
        ("0 shares", {"shares": 0}),
        ("negative shares", {"shares": -5}),
        ("half a share", {"shares": 0.5}),
        ("more shares than there are", {"shares": 10**15}),
        ("no time at all", {"horizon_minutes": 0}),
        ("more than a session", {"horizon_minutes": 391}),
        ("a number as text", {"shares": "1000"}),
        ("an unknown field", {"limit_price": 3}),
        ("a start without an offset", {"start": "2012-01-03T10:00:00"}),
    ]
    trials += [Trial(what, json.dumps({**good, **change}).encode(), status=400) for what, change in wrong]
    return trials + refused_anywhere()


def refused_anywhere() -> list[Trial]:
    """What no app of ours answers."""
    return [
        Trial("broken JSON", b'{"ticker": ', status=400),
        Trial("NaN", b'{"ticker": "AAPL", "shares": NaN}', status=400),
        Trial("no body", b"", status=400),
        Trial("text", b"sell everything", status=415, content_type="text/plain"),
        Trial("a body of two megabytes", b" " * 2**21, status=413),
    ]


def _starts(calendar: TradingCalendar) -> dict[str, dt.datetime]:
    """A start of every kind, in the calendar's last year."""
    sessions = calendar.sessions(
        calendar.last - dt.timedelta(days=400), calendar.last - dt.timedelta(days=30)
    )
    regular = next(s for s in sessions if not calendar.is_early_close(s))
    half = next((s for s in sessions if calendar.is_early_close(s)), regular)
    day = sessions[0]
    while day.weekday() >= 5 or calendar.is_session(day):
        day += dt.timedelta(days=1)
    return {
        "the open": calendar.opens(regular),
        "midday, with seconds": calendar.opens(regular) + dt.timedelta(hours=3, seconds=17),
        "after the close": calendar.close(regular) + dt.timedelta(hours=2),
        "a half day": calendar.opens(half) + dt.timedelta(hours=2),
        f"a holiday ({day})": dt.datetime(day.year, day.month, day.day, 15, tzinfo=dt.UTC),
    }


def schedule_problem(
    body: Mapping[str, Any], answer: Mapping[str, Any], calendar: TradingCalendar
) -> str | None:
    """What is wrong with an answered schedule; None when nothing is.

    Args:
        body: the request: shares, horizon_minutes (390 when absent).
        answer: decoded.
        calendar: the exchange's.
    """
    shares, minutes = body["shares"], body.get("horizon_minutes", 390)
    for name in ("schedule", "twap", "vwap"):
        slices = answer[name]
        if len(slices) != minutes:
            return f"{name} has {len(slices)} slices, the horizon has {minutes} minutes"
        sold = [s["shares"] for s in slices]
        if any(type(n) is not int or n < 0 for n in sold):
            return f"{name} sells {next(n for n in sold if type(n) is not int or n < 0)!r} shares in a slice"
        if sum(sold) != shares:
            return f"{name} sells {sum(sold)} shares, the order has {shares}"
        instants = [dt.datetime.fromisoformat(s["timestamp"]) for s in slices]
        if any(later <= earlier for earlier, later in itertools.pairwise(instants)):
            return f"{name} goes back in time"
        for day in {i.astimezone(dt.UTC).date() for i in instants}:
            inside = [i for i in instants if i.astimezone(dt.UTC).date() == day]
            if not calendar.is_session(day):
                return f"{name} sells on {day}: {calendar.why_closed(day)}"
            if inside[0] < calendar.opens(day) or inside[-1] >= calendar.close(day):
                return f"{name} sells at {inside[0]} to {inside[-1]}, outside the session"
    costs = [answer["expected_cost_bps"][name] for name in ("schedule", "twap", "vwap")]
    if not all(math.isfinite(c) and c >= -COST_TOLERANCE_BPS for c in costs):
        return f"expected costs are {costs} bps"
    return None


def predictions_problem(body: Mapping[str, Any], answer: Mapping[str, Any]) -> str | None:
    """What is wrong with answered predictions; None when nothing is."""
    predictions = answer["predictions"]
    if "rows" in body and len(predictions) != len(body["rows"]):
        return f"{len(predictions)} predictions for {len(body['rows'])} rows"
    for p in predictions:
        if not all(0 <= p[name] <= 1 for name in ("probability_long", "probability_short")):
            return f"{p} holds what is no probability"
        if p["side"] not in ("long", "short", "flat"):
            return f"side {p['side']!r}"
    return None


# -- trying ------------------------------------------------------------------------------------------------------------


def _ask(
    done: Preflight, client: Any, tried: str, body: bytes, content_type: str = JSON
) -> tuple[int, bytes] | None:
    import httpx

    begun = time.perf_counter()
    try:
        answer = client.post("/invocations", content=body, headers={"content-type": content_type})
    except httpx.TransportError as error:
        done.problems.append({"tried": tried, "problem": f"no answer: {type(error).__name__}: {error}"})
        return None
    if answer.status_code == 200:
        done.latency_ms.append(1e3 * (time.perf_counter() - begun))
    return answer.status_code, answer.content


def _problem(
    body: bytes, content: bytes, description: Mapping[str, Any], calendar: TradingCalendar
) -> str | None:
    try:
        request, answer = json.loads(body), json.loads(content)
        if description["kind"] == "execution":
            return schedule_problem(request, answer, calendar)
        return predictions_problem(request, answer)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"the answer cannot be read: {type(error).__name__}: {error}"


def _try(
    done: Preflight, client: Any, trial: Trial, description: Mapping[str, Any], calendar: TradingCalendar
) -> None:
    done.trials += 1
    answered = _ask(done, client, trial.what, trial.body, trial.content_type)
    if answered is None:
        return
    status, content = answered
    problem = None
    if status != trial.status:
        problem = f"answered {status}, must be {trial.status}: {content[:200].decode(errors='replace')}"
    elif status == 200:
        problem = _problem(trial.body, content, description, calendar)
    if problem:
        done.problems.append({"tried": trial.what, "problem": problem})


def _replay(
    done: Preflight,
    client: Any,
    captured: Sequence[CapturedRequest],
    description: Mapping[str, Any],
    calendar: TradingCalendar,
) -> None:
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for request in captured:
        if not _takes(description, request.request):
            done.outside += 1
            continue
        tried = f"captured request {request.event_id} of {request.at:%Y-%m-%d %H:%M:%S}"
        answered = _ask(done, client, tried, request.request.encode())
        if answered is None:
            continue
        done.replayed += 1
        status, content = answered
        problem = (
            f"answered {status}, {request.config} answered it: {content[:200].decode(errors='replace')}"
            if status != 200
            else _problem(request.request.encode(), content, description, calendar)
        )
        if problem:
            done.problems.append({"tried": tried, "problem": problem})
        elif comparable := _as_answer(request.response, description):
            pairs.append((json.loads(content), comparable))
    if not pairs:
        return
    if description["kind"] == "execution":
        extra = np.array([_beyond_vwap(new) - _beyond_vwap(now) for new, now in pairs])
        done.comparison.append(_row("expected cost beyond VWAP, new less current, bps", extra))
        if extra.mean() > MOST_EXTRA_COST_BPS:
            done.problems.append(
                {
                    "tried": f"{len(pairs)} captured orders",
                    "problem": f"expected cost beyond VWAP is {extra.mean():.2f} bps above the current config's, at most "
                    f"{MOST_EXTRA_COST_BPS:g} is allowed",
                }
            )
        return
    moved, sides = [], []
    for new, now in pairs:
        before = {(p["symbol"], p["session"]): p for p in now["predictions"]}
        for p in new["predictions"]:
            if other := before.get((p["symbol"], p["session"])):
                moved.append(p["probability_long"] - other["probability_long"])
                sides.append(float(p["side"] != other["side"]))
    done.comparison.append(_row("probability of a long trade, new less current", np.array(moved)))
    done.comparison.append(_row("sides that differ", np.array(sides)))


def _takes(description: Mapping[str, Any], body: str) -> bool:
    """Whether a captured request is one of this bundle's kind, inputs and tickers: a model of other features has another contract."""
    try:
        request = json.loads(body)
        if description["kind"] == "execution":
            return bool(request["ticker"] in description["markets"])
        rows = request.get("rows") or []
        return all(set(row["features"]) == set(description["inputs"]) for row in rows)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _as_answer(body: str, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """A captured answer that can be compared; None for one of an older format."""
    try:
        answer = json.loads(body)
        if description["kind"] == "execution":
            _beyond_vwap(answer)
        else:
            {(p["symbol"], p["session"], p["probability_long"], p["side"]) for p in answer["predictions"]}
    except (KeyError, TypeError, ValueError):
        return None
    return dict(answer)


def _beyond_vwap(answer: Mapping[str, Any]) -> float:
    costs = answer["expected_cost_bps"]
    return float(costs["schedule"] - costs["vwap"])


def _row(what: str, values: np.ndarray) -> dict[str, object]:
    if not len(values):
        return {"measure": what, "answers": 0, "mean": None, "5 %": None, "95 %": None, "largest": None}
    low, high = np.quantile(values, (0.05, 0.95))
    return {
        "measure": what,
        "answers": len(values),
        "mean": float(values.mean()),
        "5 %": float(low),
        "95 %": float(high),
        "largest": float(np.abs(values).max()),
    }
