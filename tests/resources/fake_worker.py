"""A process that answers like the inference app, in a tenth of a second and with every fault that can be asked for.

The bundle is a JSON file: `model`, `version`, and the faults to show:

    slow_seconds: every answer takes so long
    fail_after, invalid_after: from the so-manieth answer on, status 500, or 500 with x-quant-invalid
    refuse: every answer is status 400
    hang_after, crash_after: from the so-manieth request on, no answer at all, or the process dies in the middle of it
    crash_on: a request whose body contains this kills the process
    never_ready, exit_at_start: no /ping is answered, or the process ends with status 3
    slow_start_seconds: /ping waits
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import sys
from pathlib import Path

options = argparse.ArgumentParser()
for name in ("bundle", "fd", "capture", "capture-share", "endpoint", "config"):
    options.add_argument(f"--{name}")
given = options.parse_args()
bundle = json.loads(Path(given.bundle).read_text())
served_by = f"{bundle['model']}:{bundle['version']}:abc"
seen = {"requests": 0, "in_flight": 0}
ending = asyncio.Event()


def capture(request: bytes, answer: bytes) -> None:
    at = dt.datetime.now(dt.UTC)
    path = Path(given.capture) / given.config / f"{at:%Y/%m/%d/%H}" / f"{os.getpid()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    side = {"observedContentType": "application/json", "encoding": "JSON"}
    line = {
        "captureData": {
            "endpointInput": {**side, "mode": "INPUT", "data": request.decode(errors="replace")},
            "endpointOutput": {**side, "mode": "OUTPUT", "data": answer.decode()},
        },
        "eventMetadata": {
            "eventId": f"{os.getpid()}-{seen['requests']}",
            "inferenceTime": at.isoformat(),
            "endpoint": given.endpoint,
            "config": given.config,
        },
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


async def answer(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    if path == "/ping":
        if bundle.get("never_ready"):
            await asyncio.sleep(3600)
        if "slow_start_seconds" in bundle and not seen.get("slept"):
            await asyncio.sleep(bundle["slow_start_seconds"])
            seen["slept"] = 1
        return 200, {}, b""
    seen["requests"] += 1
    number = seen["requests"]
    if number > bundle.get("crash_after", 1e9) or bundle.get("crash_on", "\0") in body.decode(
        errors="replace"
    ):
        print("the process crashes on purpose", flush=True)
        os._exit(7)
    if number > bundle.get("hang_after", 1e9):
        await asyncio.sleep(3600)
    await asyncio.sleep(bundle.get("slow_seconds", 0))
    if number > bundle.get("fail_after", 1e9):
        return 500, {}, b'{"error": "broken on purpose"}'
    if number > bundle.get("invalid_after", 1e9):
        return 500, {"x-quant-invalid": "the schedule does not add up"}, b'{"error": "invalid"}'
    if bundle.get("refuse") or b"poison" in body:
        return 400, {}, b'{"error": "bad_request", "field": "shares", "reason": "it is poison"}'
    back = {}
    if "x-amzn-sagemaker-custom-attributes" in headers:
        back["x-amzn-sagemaker-custom-attributes"] = headers["x-amzn-sagemaker-custom-attributes"]
    told = {"model": bundle["model"], "version": bundle["version"], "pid": os.getpid(), "bytes": len(body)}
    told["authorized"] = "authorization" in headers
    content = json.dumps(told).encode()
    if float(given.capture_share) > 0:
        capture(body, content)
    return 200, back, content


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while not ending.is_set():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                key.lower(): value for key, value in (line.split(": ", 1) for line in head[1:] if line)
            }
            seen["in_flight"] += 1
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            status, back, content = await answer(head[0].split()[1], headers, body)
            lines = [
                f"HTTP/1.1 {status} X",
                f"content-length: {len(content)}",
                "content-type: application/json",
            ]
            lines += [f"{key}: {value}" for key, value in back.items()] + [f"x-quant-served-by: {served_by}"]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + content)
            await writer.drain()
            seen["in_flight"] -= 1
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    with contextlib.suppress(OSError):  # a log that cannot be written
        print(f"{given.config} started as {os.getpid()}", flush=True)
    if bundle.get("exit_at_start"):
        print("this bundle cannot be loaded: on purpose", flush=True)
        sys.exit(3)
    server = await asyncio.start_server(converse, sock=socket.socket(fileno=int(given.fd)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    await ending.wait()
    server.close()
    while seen["in_flight"]:
        await asyncio.sleep(0.01)
    os._exit(0)


asyncio.run(main())
