"""The supervisor: one process that keeps all local endpoints of a home, behind one port.

Belongs here: being the only one, the port, the control plane, finding what a dead supervisor left behind, housekeeping, the end.
Does not belong here: what an endpoint does (`served.py`), requests (`router.py`), the caller's side (`local.py`).

    python -m quant_resources.endpoints.supervisor --folder .quant/endpoints [--port 8900]

It listens on the loopback interface only. `/endpoints/...` is open to every user of this machine, as the models' answers are;
`/control/...` wants the token, which only the owner of the folder can read (`<folder>/token`, mode 0600; not in `supervisor.json`,
which others may read to find the port).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from quant_resources.endpoints import EndpointError, Rollout
from quant_resources.endpoints.channel import HOST
from quant_resources.endpoints.folder import (
    LOG_FILE,
    NAME,
    TOKEN_HEADER,
    SupervisorError,
    end_leftovers,
    is_lost,
    known,
    only_one,
    token_of,
    write_known,
)
from quant_resources.endpoints.journal import STATE_FILE
from quant_resources.endpoints.router import Receive, Router, Scope, Send
from quant_resources.endpoints.served import Served, as_release
from quant_resources.endpoints.variant import Limits, cut_log

logger = logging.getLogger(__name__)

# Below the ports that the system gives to outgoing connections: one of those could be taken while the supervisor is down.
PORTS = range(20000, 32000)
PORT_SECONDS = 1.0
TIDY_SECONDS = 1.0


def listen(folder: Path, port: int | None) -> socket.socket:
    """The port of this folder: the wanted one, the one of the last time, or the first free one from a place that the folder decides.

    Raises:
        SupervisorError: the wanted port, or the one of the last time, is taken.
    """
    last = known(folder).get("port")
    wanted = port if port is not None else last
    if isinstance(wanted, int):
        until = time.monotonic() + PORT_SECONDS
        while True:
            try:
                return _bind(wanted)
            except OSError as error:
                if time.monotonic() > until:
                    raise SupervisorError(
                        f"port {wanted} cannot be taken: {error.strerror}. Clients of the endpoints under {folder} know that port: "
                        f"end what listens there, or choose another one with QUANT_ENDPOINT_PORT."
                    ) from error
                time.sleep(0.05)
    place = int(hashlib.sha256(str(folder).encode()).hexdigest()[:8], 16)
    for offset in range(len(PORTS)):
        with contextlib.suppress(OSError):
            return _bind(PORTS[(place + offset) % len(PORTS)])
    raise SupervisorError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


def _bind(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    return listening


class _Token:
    """Lets through who knows the token."""

    def __init__(self, app: Starlette, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", [])).get(TOKEN_HEADER.encode(), b"")
        if hmac.compare_digest(given, self._token):
            await self._app(scope, receive, send)
            return
        refused = JSONResponse({"error": f"wrong or missing header {TOKEN_HEADER}"}, status_code=403)
        await refused(scope, receive, send)


class Supervisor:
    """All endpoints of a folder.

    Args:
        folder: of the endpoints.
        port: that it listens at.
        command: of a process, see `Served`.
        limits: see there.
    """

    def __init__(self, folder: Path, port: int, command: Sequence[str], limits: Limits) -> None:
        self.folder, self.port = folder, port
        self._command, self._limits = command, limits
        self.endpoints: dict[str, Served] = {}
        self._router = Router(self.endpoints, limits)
        self._control = self._make_control()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["path"].startswith("/endpoints/"):
            await self._router(scope, receive, send)
        else:
            await self._control(scope, receive, send)

    def _make_control(self) -> Starlette:
        routes = [
            Route("/control/endpoints", self._list),
            Route("/control/endpoints/{name}", self._status),
            Route("/control/endpoints/{name}", self._delete, methods=["DELETE"]),
            Route("/control/endpoints/{name}/deploy", self._deploy, methods=["POST"]),
            Route("/control/endpoints/{name}/rollback", self._rollback, methods=["POST"]),
            Route("/control/endpoints/{name}/restart", self._restart, methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(_Token, token=token_of(self.folder))],  # type: ignore[arg-type]
            exception_handlers={EndpointError: _explain, Exception: _explain},
        )

    def _served(self, name: str) -> Served:
        served = self.endpoints.get(name)
        if served is None or served.phase == "absent":
            raise EndpointError(f"{name} does not exist. Deploy a release to create it.")
        return served

    def _make(self, name: str) -> Served:
        if not NAME.fullmatch(name):
            raise EndpointError(f"{name!r} is no name of an endpoint")
        return Served(name, self.folder, self._command, self._limits, f"http://{HOST}:{self.port}")

    async def _list(self, request: Request) -> Response:
        shown = [served for served in self.endpoints.values() if served.phase != "absent"]
        return JSONResponse([dataclasses.asdict(served.status()) for served in shown])

    async def _status(self, request: Request) -> Response:
        served = self.endpoints.get(request.path_params["name"]) or self._make(request.path_params["name"])
        return JSONResponse(dataclasses.asdict(served.status()))

    async def _deploy(self, request: Request) -> Response:
        name = request.path_params["name"]
        wanted = await request.json()
        release = as_release(wanted["release"])
        try:
            rollout = Rollout(**wanted["rollout"])
        except TypeError as error:
            raise EndpointError(f"no rollout: {error}") from error
        served = self.endpoints.get(name)
        if served is None:
            served = self.endpoints[name] = self._make(name)
        return JSONResponse(dataclasses.asdict(await served.deploy(release, rollout)))

    async def _rollback(self, request: Request) -> Response:
        served = self._served(request.path_params["name"])
        return JSONResponse(dataclasses.asdict(await served.rollback((await request.json())["reason"])))

    async def _restart(self, request: Request) -> Response:
        served = self._served(request.path_params["name"])
        return JSONResponse(dataclasses.asdict(await served.restart((await request.json())["reason"])))

    async def _delete(self, request: Request) -> Response:
        served = self.endpoints.get(request.path_params["name"])
        if served is None or served.phase == "absent":
            return JSONResponse({})
        return JSONResponse(dataclasses.asdict(await served.delete()))

    async def come_back(self) -> None:
        """All endpoints whose journal is there."""
        for state in sorted(self.folder.glob(f"*/{STATE_FILE}")):
            served = self.endpoints[state.parent.name] = self._make(state.parent.name)
            await served.come_back()

    async def stop(self) -> None:
        """End all processes."""
        await asyncio.gather(*(served.stop() for served in self.endpoints.values()))

    async def keep_house(self, give_up: asyncio.Event) -> None:
        """Cut logs, write what a full disk did not take, and see whether the folder is still ours.

        Args:
            give_up: set when it is not: somebody removed it, and nobody could reach this process any more.
        """
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            if is_lost(self.folder):
                logger.error("%s is no longer this supervisor's: everything ends", self.folder)
                give_up.set()
                return
            for served in list(self.endpoints.values()):
                try:
                    await served.tidy()
                except OSError as error:
                    logger.error("%s cannot be tidied: %s", served.name, error)
            with contextlib.suppress(OSError):
                cut_log(self.folder / LOG_FILE, self._limits.log_bytes)


async def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, EndpointError):
        return JSONResponse({"error": str(error)}, status_code=409)
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: they end the process as soon as the last answer is out, before its children have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `supervise`'s."""
        yield


async def supervise(folder: Path, listening: socket.socket, command: Sequence[str], limits: Limits) -> None:
    """Until SIGTERM or SIGINT: serve all endpoints of a folder.

    Args:
        folder: of the endpoints; held by this process.
        listening: the port.
        command: of a process, see `Served`.
        limits: see there.
    """
    port = listening.getsockname()[1]
    supervisor = Supervisor(folder, port, command, limits)
    config = uvicorn.Config(
        supervisor,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(limits.drain_seconds + limits.wait_seconds),
        backlog=2048,
    )
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
    write_known(folder, port, os.getpid())
    await supervisor.come_back()
    give_up = asyncio.Event()
    house = asyncio.create_task(supervisor.keep_house(give_up))

    async def end_when_given_up() -> None:
        await give_up.wait()
        server.should_exit = True

    watch = asyncio.create_task(end_when_given_up())
    logger.info("%s at port %d, pid %d", folder, port, os.getpid())
    try:
        await server.serve(sockets=[listening])
    finally:
        for task in (house, watch):
            task.cancel()
        await supervisor.stop()
        if not give_up.is_set():
            write_known(folder, port, None)
        logger.info("stopped")


def _detach() -> None:
    """Go on in a child that belongs to nobody; the parent tells its pid on stdout and ends.

    Whoever starts a supervisor may be killed or live for weeks: it shall neither take the supervisor along nor keep its zombie.
    """
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.setsid()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m quant_resources.endpoints.supervisor")
    parser.add_argument("--folder", type=Path, required=True, help="of the endpoints")
    parser.add_argument("--port", type=int, help="unless the one of the last time, or any one that is free")
    parser.add_argument("--worker-command", type=json.loads, help="JSON list; placeholders as in local.py")
    parser.add_argument("--limits", type=json.loads, default={}, help="JSON object; see variant.Limits")
    parser.add_argument("--detach", action="store_true", help="go on in the background, print the pid")
    options = parser.parse_args(arguments)
    if options.worker_command is None:
        from quant_resources.endpoints.local import WORKER_COMMAND

        options.worker_command = WORKER_COMMAND
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.detach:
        _detach()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with only_one(folder):
            listening = listen(folder, options.port)
            if left := end_leftovers(folder):
                logger.warning("a dead supervisor left processes behind, which were ended: %s", left)
            limits = Limits(**options.limits)
            loop = uvicorn.Config(lambda: None, log_config=None).get_loop_factory()
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(supervise(folder, listening, options.worker_command, limits))
    except (SupervisorError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
