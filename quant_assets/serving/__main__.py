"""Serves a bundle: `python -m quant_assets.serving --bundle PATH`; SageMaker runs the container's entry point with the word `serve`.

Belongs here: arguments, the socket, processes, signals, the log's format. Does not belong here: what is answered (`app.py`).

One process answers. With `--workers N` this process only starts N of them on one socket and starts again what dies; a connection
that waits in the socket is taken by any of them, so none is lost when one is killed. Workers end when this process does.

SIGTERM: nothing new is accepted, requests in flight are finished (for at most `FINISH_SECONDS`), captured requests are written,
exit code 0. Exit code 2: it cannot be served as asked, and one sentence on stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from quant_assets.serving.bundle import Bundle

FINISH_SECONDS = 20
# After that, for captured requests.
CAPTURE_SECONDS = 10
# Longer than clients and load balancers keep an idle connection, so that they end it and not we, just as a request comes.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
CANNOT_SERVE = 2
# A worker that dies sooner was never of use; it is started again no more often than once in so many seconds.
RESTART_SECONDS = 1.0
QUOTED_CHARACTERS = 300


class CannotServe(Exception):
    """It cannot be served as asked. The message is for the person who started it."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with defaults from SageMaker's environment."""
    parser = argparse.ArgumentParser(prog="python -m quant_assets.serving", description="Serve a bundle.")
    parser.add_argument("serve", nargs="?", choices=["serve"], help="as SageMaker starts a container")
    parser.add_argument(
        "--bundle",
        type=Path,
        default=Path(os.environ.get("SM_MODEL_DIR") or "/opt/ml/model"),
        help="model.tar.gz, or the folder that it was unpacked to (default: $SM_MODEL_DIR, /opt/ml/model)",
    )
    parser.add_argument("--host", help="default: 127.0.0.1; with `serve` 0.0.0.0")
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("SAGEMAKER_BIND_TO_PORT") or "8080",
        help="default: $SAGEMAKER_BIND_TO_PORT, 8080",
    )
    parser.add_argument(
        "--fd", type=int, help="a listening socket that was inherited, instead of host and port"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes on the one socket (default: 1)")
    parser.add_argument("--capture", type=Path, metavar="FOLDER", help="append captured requests here")
    parser.add_argument(
        "--capture-share", type=float, default=1.0, help="of the requests, 0 to 1 (default: 1)"
    )
    parser.add_argument("--endpoint", help="name in captured requests (default: the model's)")
    parser.add_argument("--config", help="name in captured requests (default: the endpoint's and the digest)")
    parser.add_argument(
        "--log-level", default="error", choices=["debug", "info", "warning", "error", "critical"]
    )
    parsed = parser.parse_args(given)
    if parsed.workers < 1:
        parser.error(f"--workers {parsed.workers}: at least 1 process has to answer")
    if not 0 <= parsed.capture_share <= 1:
        parser.error(f"--capture-share {parsed.capture_share}: a part of the requests, 0 to 1")
    if parsed.host is None:
        parsed.host = "0.0.0.0" if parsed.serve else "127.0.0.1"
    return parsed


# -- the log -----------------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """One JSON object per record: event, level, at, logger, what the record's `fields` add, and the traceback of an exception.

    Of an exception's text only the beginning is kept: it may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, Any] = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "at": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["exception"] = f"{type(error).__name__}: {error}"[:QUOTED_CHARACTERS]
            line["traceback"] = "".join(traceback.format_tb(error.__traceback__))
        return json.dumps(line)


def _log_as_json(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A line in the log that cannot be written must not become a traceback in it.
    logging.raiseExceptions = False


# -- the socket --------------------------------------------------------------------------------------------------------


def _listening(given: argparse.Namespace) -> socket.socket:
    """The socket to accept on. A new one is bound and not listened on yet: nobody connects before the model is loaded."""
    if given.fd is not None:
        try:
            inherited = socket.socket(fileno=given.fd)
            if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError("it is a socket that does not listen")
        except OSError as error:
            raise CannotServe(f"--fd {given.fd} is no listening socket: {error}") from error
        return inherited
    try:
        family = socket.AF_INET6 if ":" in given.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((given.host, given.port))
    except (OSError, OverflowError) as error:
        raise CannotServe(
            f"{given.host}:{given.port} cannot be listened on ({error}): choose another --port, or end what holds it"
        ) from error
    return bound


# -- one process -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Bundle:
    from quant_assets.serving.bundle import BundleError, read_bundle

    try:
        return read_bundle(path)
    except BundleError as error:
        raise CannotServe(str(error)) from error


def _answer(given: argparse.Namespace, listening: socket.socket) -> int:
    """Load the bundle and answer until SIGTERM; the exit code."""
    import uvicorn

    from quant_assets.serving.app import make_app
    from quant_assets.serving.bundle import BundleError
    from quant_assets.serving.capture import Capture

    bundle = _read(given.bundle)
    capture = None
    if given.capture is not None and given.capture_share > 0:
        endpoint = given.endpoint or bundle.model.replace("_", "-")
        config = given.config or f"{endpoint}-{bundle.digest[:12]}"
        capture = Capture(given.capture, given.capture_share, endpoint, config)
    try:
        app = make_app(bundle, capture)
    except BundleError as error:
        raise CannotServe(str(error)) from error
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=given.log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINISH_SECONDS,
        )
    )

    # Once it has ended, uvicorn raises the signal again for whoever handled it before: that is this, so the exit code stays 0.
    def end(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.config.load()
    # What was loaded stays: a full collection would look through it for about 10 ms, in the middle of somebody's answer.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listening])
    return 0


# -- several processes -------------------------------------------------------------------------------------------------


def _supervise(count: int, listening: socket.socket, answer: Callable[[], int]) -> int:
    """Keep `count` processes answering until SIGTERM; the exit code.

    This process imports nothing heavy, so that the others begin small and without threads.
    """
    waited_for = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    # Blocked and then waited for: no signal is lost between two looks. One without a handler may not be kept.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    ours, held_open = os.pipe()  # workers see its end when this process is gone, however it went

    def start() -> int:
        worker = os.fork()
        if worker:
            return worker
        os.close(held_open)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for)
        threading.Thread(target=_end_with, args=(ours,), name="end_with", daemon=True).start()
        leave(answer)

    started = {start(): time.monotonic() for _ in range(count)}
    code: int | None = None
    while code is None:
        if signal.sigwait(waited_for) != signal.SIGCHLD:
            code = 0
            break
        for worker, ended in _ended().items():
            lived = time.monotonic() - started.pop(worker)
            if ended == CANNOT_SERVE:  # the others cannot either
                code = ended
            if code is not None:
                continue
            logging.error("worker_ended", extra={"fields": {"worker": worker, "exit_code": ended}})
            time.sleep(max(0.0, RESTART_SECONDS - lived))
            started[start()] = time.monotonic()
    # Nobody would accept what waits in it any more.
    listening.close()
    for worker in started:
        os.kill(worker, signal.SIGTERM)
    latest = time.monotonic() + FINISH_SECONDS + CAPTURE_SECONDS
    while started and time.monotonic() < latest:
        time.sleep(0.05)
        for worker in _ended():
            started.pop(worker, None)
    for worker in started:
        os.kill(worker, signal.SIGKILL)
    return code


def _ended() -> dict[int, int]:
    """Exit codes of the workers that have ended since the last look; the end of several may be one signal."""
    found: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):  # none is left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return found


def _end_with(pipe: int) -> None:
    """End this process, in order, when the other end of the pipe is closed."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


# -- beginning and end -------------------------------------------------------------------------------------------------


def main(given: argparse.Namespace) -> int:
    """Serve until SIGTERM; the exit code.

    Raises:
        CannotServe: not as asked.
    """
    # Until the server has handlers of its own, there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _log_as_json(given.log_level)
    listening = _listening(given)

    def answer() -> int:
        return _answer(given, listening)

    if given.workers == 1:
        return answer()
    _read(given.bundle)  # what is plainly broken is said once, not by every worker
    return _supervise(given.workers, listening, answer)


def leave(run: Callable[[], int]) -> NoReturn:
    """Run, and end the process with its exit code at once: a computation in a thread cannot be stopped, and Python would wait."""
    try:
        code = run()
    except CannotServe as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        code = CANNOT_SERVE
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    given_now = arguments()
    leave(lambda: main(given_now))
