"""One local endpoint inside the supervisor: which config serves, and what leads from one to the next.

Belongs here: deploy, canary, alarms, switch, rollback, restart, delete, and coming back after a kill. Does not belong here: who asks
(`supervisor.py`), processes (`variant.py`), requests (`router.py`).

Every change of what serves is written to the journal before it happens, so whatever dies at whatever moment, the config in the
journal is the one that serves after a restart. A disk that takes no journal stops a rollout, not the endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant_resources.endpoints import EndpointError, EndpointStatus, Phase, Release, Rollout
from quant_resources.endpoints.folder import FOLDER_MARK
from quant_resources.endpoints.journal import Journal, State
from quant_resources.endpoints.variant import Limits, NotReady, Process, Tally, Variant, cut_log

logger = logging.getLogger(__name__)

# Phases in which a rollout or a rollback goes on.
BUSY: tuple[Phase, ...] = ("creating", "updating", "rolling_back", "deleting")
# How often a rollout looks at its alarms, seconds.
JUDGED_EVERY_SECONDS = 0.02
KEPT_LOGS = 10


class _Alarm(RuntimeError):
    """The canary broke a limit."""


class _Unwanted(RuntimeError):
    """Somebody asked for the end of the rollout."""


def broken(tally: Tally, rollout: Rollout) -> str | None:
    """Why a canary gets no more requests, None while its answers are right. Asked before each request."""
    of = f"of {tally.requests} answers"
    if tally.errors_5xx > rollout.max_errors_5xx:
        return f"{tally.errors_5xx} {of} were errors (allowed: {rollout.max_errors_5xx}), the last: {tally.last_problem}"
    if tally.invalid > rollout.max_invalid:
        return f"{tally.invalid} {of} were invalid (allowed: {rollout.max_invalid}), the last: {tally.last_problem}"
    return None


def alarm(tally: Tally, rollout: Rollout) -> str | None:
    """Why a canary has to go, None while it may stay.

    Args:
        tally: of the canary.
        rollout: the limits.
    """
    if why := broken(tally, rollout):
        return why
    if len(tally.latencies_ms) >= max(rollout.least_requests, 1):
        p99 = tally.percentile_ms(99)
        assert p99 is not None
        if p99 > rollout.max_p99_latency_ms:
            return f"p99 of {tally.requests} answers is {p99:.1f} ms (allowed: {rollout.max_p99_latency_ms:g} ms)"
    return None


def _experience(tally: Tally) -> str:
    """What a canary went through, in words."""
    p99 = tally.percentile_ms(99)
    if p99 is None:
        return "as a canary it got no request"
    return f"as a canary it gave {tally.requests} answers, {tally.errors_5xx} errors, {tally.invalid} invalid, p99 {p99:.1f} ms"


class Served:
    """One endpoint.

    Args:
        name: of the endpoint.
        folder: of all endpoints.
        command: of a process; `{bundle}`, `{fd}`, `{capture}`, `{capture_share}`, `{endpoint}`, `{config}` are filled in.
        limits: see there.
        url: of all endpoints.

    Attributes:
        current: answers all traffic but the canary's share.
        canary: answers that share, None outside of a rollout.
        canary_p99_ms: that the canary is allowed.
    """

    def __init__(self, name: str, folder: Path, command: Sequence[str], limits: Limits, url: str) -> None:
        self.name, self.folder, self._all = name, folder / name, folder
        self._command, self._limits = command, limits
        self._url = f"{url}/endpoints/{name}/invocations"
        self.journal = Journal(self.folder)
        self.state = State(name)
        self.current: Variant | None = None
        self.canary: Variant | None = None
        self.canary_p99_ms = 0.0
        self._green: Variant | None = None  # of the rollout or rollback in progress, with traffic or without
        self._share, self._owed, self._rollout = 0.0, 0.0, Rollout()
        self._lock = asyncio.Lock()
        self._operation: asyncio.Task[None] | None = None
        self._unwanted: str | None = None
        self._draining: dict[Variant, asyncio.Task[None]] = {}
        self._written = True
        self._broken = ""

    # --- what it is doing

    @property
    def phase(self) -> Phase:
        """See `Phase`; unlike the journal's it knows whether processes live."""
        if self._broken:
            return "failed"
        if self.state.phase in BUSY or self.state.config is None or self.current is None:
            return self.state.phase
        if self.current.ready:
            return "in_service"
        if self.current.failing:
            return "failed"
        return "in_service" if self.current.was_ready else "creating"

    def status(self) -> EndpointStatus:
        """For people, sensors, and whoever waits."""
        state, phase = self.state, self.phase
        message = self._broken or state.message
        if phase == "failed" and not self._broken and self.current is not None:
            message = f"{self.current.config} fails: {self.current.why}"
        if not self._written:
            message += " (the journal could not be written: after a restart the state before holds)"
        release = state.releases.get(state.config or "", {})
        variants = []
        if self.current is not None:
            variants.append(self.current.status(1 - self._share if self.canary else 1.0))
        if self._green is not None:
            variants.append(self._green.status(self._share if self.canary else 0.0))
        variants += [variant.status(0.0) for variant in self._draining]
        return EndpointStatus(
            name=self.name,
            phase=phase,
            url=self._url,
            config=state.config,
            model=release.get("model"),
            model_version=release.get("model_version"),
            previous_config=state.previous_config,
            target_config=state.target_config,
            variants=tuple(variants),
            last_outcome=state.last_outcome,
            message=message,
        )

    def canary_turn(self) -> Variant | None:
        """The canary for every so-manieth request, exactly; the first of all goes there, and every one that the current config could
        not answer now."""
        if self.canary is None or not self.canary.ready or broken(self.canary.tally, self._rollout):
            return None
        if self.current is not None and not self.current.ready:
            return self.canary
        self._owed += self._share
        if self._owed < 1 - 1e-9:
            return None
        self._owed -= 1
        return self.canary

    # --- what it is asked to do

    async def deploy(self, release: Release, rollout: Rollout) -> EndpointStatus:
        """Begin a rollout. See `Endpoint.deploy`.

        Raises:
            EndpointError: another rollout is in progress, or the bundle is not what the release says.
        """
        config = release.config(self.name)
        async with self._lock:
            self._must_be_known()
            state = self.state
            if state.phase in BUSY:
                if state.target_config == config:
                    return self.status()
                raise EndpointError(
                    f"{self.name} is {state.phase.replace('_', ' ')} ({state.config or 'nothing'} -> {state.target_config}), "
                    f"so {config} cannot be deployed. Wait for the end, or go back with rollback()."
                )
            if state.config == config and self.current is not None:
                if self.phase == "failed":
                    await self._renew(f"{config} was deployed again")
                return self.status()
            await asyncio.to_thread(self._place, release, config)
            entry = {
                "model": release.model,
                "model_version": release.model_version,
                "digest": release.digest,
                "capture_share": release.capture_share,
                "workers": release.workers,
                "tags": dict(release.tags),
            }
            try:
                await self._record(
                    phase="creating" if state.config is None else "updating",
                    target_config=config,
                    releases={**state.releases, config: entry},
                    rollout=rollout.as_dict(),
                    message=f"{config} is started",
                )
            except OSError as error:
                raise EndpointError(
                    f"{self.name}: the rollout of {config} cannot be written down: {error}. Nothing was changed; free space under "
                    f"{self.folder}."
                ) from error
            self._begin(self._roll_out(config, rollout))
            return self.status()

    async def rollback(self, reason: str) -> EndpointStatus:
        """Go back. See `Endpoint.rollback`.

        Raises:
            EndpointError: there is nothing to go back to.
        """
        async with self._lock:
            self._must_be_known()
            state = self.state
            if state.phase in ("creating", "updating"):
                self._unwanted = f"rollback was asked for: {reason}"
                return self.status()
            if state.phase in BUSY:
                raise EndpointError(
                    f"{self.name} is {state.phase.replace('_', ' ')} already: {state.message}"
                )
            previous = state.previous_config
            if previous is None:
                raise EndpointError(
                    f"{self.name} has no previous config to go back to (it serves {state.config or 'nothing'}). Deploy the "
                    "release that you want."
                )
            try:
                await self._record(
                    phase="rolling_back",
                    target_config=previous,
                    message=f"going back to {previous}: {reason}",
                )
            except OSError as error:
                raise EndpointError(f"{self.name}: going back cannot be written down: {error}") from error
            self._begin(self._go_back(previous, reason))
            return self.status()

    async def restart(self, reason: str) -> EndpointStatus:
        """New processes for the current config; requests wait until they answer. See `Endpoint.restart`.

        Raises:
            EndpointError: nothing should serve, or a rollout is in progress.
        """
        async with self._lock:
            self._must_be_known()
            if self.state.phase in BUSY:
                raise EndpointError(
                    f"{self.name} is {self.state.phase.replace('_', ' ')}: {self.state.message}"
                )
            if self.state.config is None:
                raise EndpointError(
                    f"{self.name} has never served, so there is nothing to restart. Deploy a release."
                )
            await self._renew(f"restarted: {reason}")
            return self.status()

    async def delete(self) -> EndpointStatus:
        """Begin to take it down; captured requests and the history stay."""
        async with self._lock:
            if self.state.phase != "deleting":
                self._unwanted = "the endpoint is deleted"
                operation = self._operation
                await self._record_anyway(phase="deleting", message="the endpoint is taken down")
                self._operation = asyncio.create_task(self._take_down(operation))
            return self.status()

    async def come_back(self) -> None:
        """Serve what the journal says, after a restart of the supervisor."""
        async with self._lock:
            try:
                await self._come_back()
            except Exception as error:  # one endpoint must not keep the others from coming back
                logger.exception("%s", self.name)
                self._broken = (
                    str(error) if isinstance(error, EndpointError) else f"it cannot come back: {error!r}"
                )

    async def _come_back(self) -> None:
        state = await asyncio.to_thread(self.journal.read)
        if state is None:
            return
        self.state = state
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.journal.mend, state)
        if state.phase == "deleting":
            self._operation = asyncio.create_task(self._take_down(None))
        elif state.config is None:
            if state.phase == "creating" and state.target_config is not None:
                await self._record_anyway(
                    message=f"the supervisor was restarted while {state.target_config} was being created; it is started again"
                )
                self._begin(self._roll_out(state.target_config, Rollout(**state.rollout)))
        else:
            if state.phase in BUSY:
                keep = (state.config, state.previous_config)
                await self._record_anyway(
                    phase="in_service",
                    target_config=None,
                    releases={name: entry for name, entry in state.releases.items() if name in keep},
                    rollout={},
                    last_outcome="rolled_back" if state.phase == "updating" else "failed",
                    message=f"the supervisor was restarted in the middle of {state.phase.replace('_', ' ')} to "
                    f"{state.target_config}; {state.config} serves on",
                )
            self.current = self._variant(state.config)
            await asyncio.to_thread(self._sweep)

    async def stop(self) -> None:
        """End all processes; the journal stays as it is."""
        variants = {self.current, self._green, *self._draining}
        self.current = self.canary = self._green = None
        tasks = [task for task in (self._operation, *self._draining.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(variant.end(0) for variant in variants if variant is not None))

    async def tidy(self) -> None:
        """Now and then: logs that are too long, a journal that a full disk did not take."""
        for log in (self.folder / "logs").glob("*.log"):
            await asyncio.to_thread(cut_log, log, self._limits.log_bytes)
        if not self._written and not self._lock.locked():
            async with self._lock:
                await self._record_anyway()

    # --- how it is done

    def _must_be_known(self) -> None:
        if self._broken:
            raise EndpointError(self._broken)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._unwanted = None
        self._operation = asyncio.create_task(work)

    async def _record(self, **changes: Any) -> None:
        """Write the next state; it holds once it is on the disk. The lock is held.

        Raises:
            OSError: it is not; the state before holds.
        """
        state = self.state.next(**changes)
        await asyncio.to_thread(self.journal.write, state)
        self.state, self._written = state, True
        logger.info("%s: %s %s: %s", self.name, state.phase, state.config, state.message)
        try:
            await asyncio.to_thread(self.journal.tell, state)
        except OSError as error:
            logger.error("%s: the history cannot be written: %s", self.name, error)

    async def _record_anyway(self, **changes: Any) -> None:
        """The next state, where the endpoint has to go on whether the disk takes it or not."""
        try:
            await self._record(**changes)
        except OSError as error:
            logger.error("%s: the journal cannot be written: %s", self.name, error)
            self.state = replace(self.state, **changes)
            self._written = False

    def _tell_process(self, config: str, message: str) -> None:
        try:
            self.journal.tell_process(config, message)
        except OSError as error:
            logger.error("%s: the history cannot be written: %s", self.name, error)

    def _archive(self, config: str) -> Path:
        return self.folder / "configs" / config / "model.tar.gz"

    def _place(self, release: Release, config: str) -> None:
        """Copy the bundle to where only this endpoint writes.

        Raises:
            EndpointError: it cannot be copied, or is not what the release says.
        """
        archive = self._archive(config)
        beside = archive.with_name(archive.name + ".new")
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release.bundle, beside)
            with beside.open("rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if digest == release.digest:
                os.replace(beside, archive)
        except OSError as error:
            raise EndpointError(
                f"{self.name}: {release.bundle} cannot be copied to {archive}: {error}. Nothing was changed."
            ) from error
        if digest != release.digest:
            beside.unlink()
            raise EndpointError(
                f"{self.name}: {release.bundle} has the digest {digest}, the release says {release.digest}. Nothing was changed; "
                "make the release from the archive as it is now."
            )

    def _variant(self, config: str) -> Variant:
        """Processes of a config, being started."""
        entry = self.state.releases[config]
        values = {
            "bundle": str(self._archive(config)),
            "capture": str(self.folder / "capture"),
            "capture_share": str(entry["capture_share"]),
            "endpoint": self.name,
            "config": config,
        }
        command = list(self._command)
        for key, value in values.items():
            command = [part.replace("{" + key + "}", value) for part in command]
        environment = {**os.environ, FOLDER_MARK: str(self._all)}
        log = self.folder / "logs" / f"{config}.log"
        return Variant(
            config,
            entry,
            log,
            lambda died: Process(command, environment, self.folder, log, self._limits, died),
            self._tell_process,
        )

    def _check_wanted(self) -> None:
        if self._unwanted is not None:
            raise _Unwanted(self._unwanted)

    async def _roll_out(self, config: str, rollout: Rollout) -> None:
        """Start a config, try it on a share of the traffic, give it all."""
        old = self.current
        before = self.state.config
        try:
            green = self._green = self._variant(config)
            await green.wait_ready(rollout.ready_seconds, self._check_wanted)
            seen = "it is the first"
            if old is not None:
                async with self._lock:
                    self._check_wanted()
                    await self._record(message=f"{config} gets {rollout.canary_share:.0%} of the traffic")
                await self._bake(green, rollout)
                seen = _experience(green.tally)
            await self._switch(green, before, "deployed", f"{config} serves: {seen}")
        except _Unwanted as unwanted:
            await self._stay(before, "rolled_back", f"{config} was given up: {unwanted}")
        except _Alarm as broke:
            await self._stay(before, "rolled_back", f"{config} was rolled back to {before}: {broke}")
        except NotReady as not_ready:
            await self._stay(before, "failed", str(not_ready))
        except OSError as error:
            await self._stay(before, "failed", f"the rollout of {config} stopped: {error}")
        except Exception as error:
            logger.exception("%s: the rollout of %s", self.name, config)
            await self._stay(before, "failed", f"the rollout of {config} stopped: {error!r}")

    async def _bake(self, green: Variant, rollout: Rollout) -> None:
        """Share the traffic for a while.

        Raises:
            _Alarm: the new config broke a limit.
            _Unwanted: somebody asked for the end.
        """
        self.canary_p99_ms = rollout.max_p99_latency_ms
        self._rollout, self._share, self._owed = rollout, rollout.canary_share, 1 - rollout.canary_share
        self.canary = green
        until = time.monotonic() + rollout.bake_seconds
        try:
            while True:
                # What it was asked during the bake and has not answered yet may be its undoing.
                over = time.monotonic() >= until and not green.owes(until)
                self._check_wanted()
                if green.died:
                    raise _Alarm(f"a process of it died: {green.why}")
                if why := alarm(green.tally, rollout):
                    raise _Alarm(why)
                if over:
                    return
                await asyncio.sleep(JUDGED_EVERY_SECONDS)
        except BaseException:
            self.canary = None
            raise

    async def _switch(self, green: Variant, before: str | None, outcome: str, message: str) -> None:
        """All traffic to the new config, then the old one drains and ends.

        Raises:
            OSError: the journal cannot be written, so nothing was switched.
            _Unwanted: somebody asked for the end.
        """
        async with self._lock:
            self._check_wanted()
            old = self.current
            keep = before if outcome == "deployed" else None
            await self._record(
                phase="in_service",
                config=green.config,
                previous_config=keep,
                target_config=None,
                releases={
                    config: entry
                    for config, entry in self.state.releases.items()
                    if config in (green.config, keep)
                },
                rollout={},
                last_outcome=outcome,
                message=message,
            )
            self.current, self.canary, self._green = green, None, None
        if old is not None:
            self._drain(old)
        await asyncio.to_thread(self._sweep)

    async def _stay(self, config: str | None, outcome: str, message: str) -> None:
        """The old config serves on, or none if it was the first; the new one ends."""
        async with self._lock:
            green, self.canary, self._green = self._green, None, None
            if green is not None:
                self._drain(green)
            if self.state.phase == "deleting":
                return
            state = self.state
            keep = (config, state.previous_config)
            await self._record_anyway(
                phase="failed" if config is None else "in_service",
                target_config=None,
                releases={name: entry for name, entry in state.releases.items() if name in keep},
                rollout={},
                last_outcome=outcome,
                message=message + (f"; {config} serves on" if config and config not in message else ""),
            )
        await asyncio.to_thread(self._sweep)

    async def _go_back(self, previous: str, reason: str) -> None:
        """Manual rollback: start the previous config and give it all traffic."""
        before = self.state.config
        try:
            green = self._green = self._variant(previous)
            await green.wait_ready(self._limits.ready_seconds, self._check_wanted)
            await self._switch(green, before, "rolled_back", f"back from {before} to {previous}: {reason}")
        except (NotReady, _Unwanted, OSError) as error:
            await self._stay(before, "failed", f"going back to {previous} failed: {error}")
        except Exception as error:
            logger.exception("%s: going back to %s", self.name, previous)
            await self._stay(before, "failed", f"going back to {previous} failed: {error!r}")

    async def _renew(self, message: str) -> None:
        """Processes of the current config anew. The lock is held."""
        assert self.state.config is not None
        old = self.current
        await self._record_anyway(message=message)
        self.current = self._variant(self.state.config)
        if old is not None:
            self._drain(old)

    def _drain(self, variant: Variant) -> None:
        """End a variant that gets no more traffic once it has answered what it was asked."""

        async def end() -> None:
            try:
                await variant.end(self._limits.drain_seconds)
            finally:
                self._draining.pop(variant, None)

        self._draining[variant] = asyncio.create_task(end())

    async def _take_down(self, operation: asyncio.Task[None] | None) -> None:
        if operation is not None:
            await asyncio.gather(operation, return_exceptions=True)
        old, self.current = self.current, None
        if old is not None:
            self._drain(old)
        await asyncio.gather(*self._draining.values(), return_exceptions=True)
        for name in ("configs", "logs"):
            await asyncio.to_thread(shutil.rmtree, self.folder / name, True)
        await asyncio.to_thread(self.journal.forget)
        self.state = self.state.next(
            phase="absent",
            config=None,
            previous_config=None,
            target_config=None,
            releases={},
            last_outcome="",
            message="the endpoint was deleted",
        )
        with contextlib.suppress(OSError):
            self.journal.tell(self.state)
        self._unwanted, self._broken = None, ""

    def _sweep(self) -> None:
        """Remove bundles that no state names, and all but the newest logs."""
        for folder in (self.folder / "configs").glob("*"):
            if folder.name not in self.state.releases:
                shutil.rmtree(folder, ignore_errors=True)
        logs = sorted((self.folder / "logs").glob("*.log"), key=lambda log: log.stat().st_mtime)
        for log in logs[:-KEPT_LOGS]:
            for path in (log, log.with_name(log.name + ".1")):
                path.unlink(missing_ok=True)


def as_release(values: Mapping[str, Any]) -> Release:
    """A release from the wire.

    Raises:
        EndpointError: a value is missing, unknown or not allowed.
    """
    try:
        return Release(**{**values, "bundle": Path(values["bundle"])})
    except (TypeError, KeyError) as error:
        raise EndpointError(f"no release: {error}") from error
