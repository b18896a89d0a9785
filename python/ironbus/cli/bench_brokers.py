"""The brokers beside a durable bus: Redis Streams and NATS JetStream, from Python, on this machine.

A broker is started on loopback for as long as it is measured, in an empty
folder that is removed again; nothing that runs already is touched. Each
function does one round over the payloads and returns its seconds: encode,
append, fetch, decode, call a handler, acknowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ironbus.cli.bench_kit import NotHere, Payload, expect

HOST = "127.0.0.1"
CHUNK = 500  # events in a pipeline, in flight, or in a fetch
PATIENCE = 10.0  # seconds for a server to answer


def redis_streams(payloads: Sequence[Payload]) -> float:
    """Redis Streams that flush before they answer: ``XADD``, ``XREADGROUP`` and ``XACK`` by 500."""
    import redis

    seen = 0

    def handler(_: Payload) -> None:
        nonlocal seen
        seen += 1

    def arguments(folder: str, port: str) -> Sequence[str]:
        flushed = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        return "--bind", HOST, "--port", port, "--dir", folder, *flushed

    with _server("redis-server", arguments) as port, redis.Redis(HOST, port) as client:
        client.xgroup_create("orders", "bill", id="0", mkstream=True)
        start = time.perf_counter()
        for begin in range(0, len(payloads), CHUNK):
            with client.pipeline(transaction=False) as pipeline:
                for payload in payloads[begin : begin + CHUNK]:
                    pipeline.xadd("orders", {"data": json.dumps(payload)})
                pipeline.execute()
        while fetched := client.xreadgroup("bill", "worker", {"orders": ">"}, count=CHUNK):
            entries = fetched[0][1]
            for _, fields in entries:
                handler(json.loads(fields[b"data"]))
            client.xack("orders", "bill", *(entry for entry, _ in entries))
        seconds = time.perf_counter() - start
    expect(seen, len(payloads))
    return seconds


def nats_jetstream(payloads: Sequence[Payload]) -> float:
    """NATS JetStream in a file: 500 publishes in flight, pulls of 500.

    By its defaults: it flushes every two minutes, so this one is not as durable as the others.
    """
    import nats

    async def run(port: int) -> float:
        seen = 0

        async def handler(_: Payload) -> None:
            nonlocal seen
            seen += 1

        client = await nats.connect(f"nats://{HOST}:{port}")
        stream = client.jetstream()
        await stream.add_stream(name="orders", subjects=["order"])
        pull = await stream.pull_subscribe("order", "bill")
        start = time.perf_counter()
        for begin in range(0, len(payloads), CHUNK):
            chunk = payloads[begin : begin + CHUNK]
            await asyncio.gather(*(stream.publish("order", json.dumps(payload).encode()) for payload in chunk))
        while seen < len(payloads):
            for message in await pull.fetch(CHUNK, timeout=PATIENCE):
                await handler(json.loads(message.data))
                await message.ack()
        await client.flush()
        seconds = time.perf_counter() - start
        await client.close()
        expect(seen, len(payloads))
        return seconds

    def arguments(folder: str, port: str) -> Sequence[str]:
        return "-a", HOST, "-p", port, "-js", "-sd", folder

    with _server("nats-server", arguments) as port:
        return asyncio.run(run(port))


@contextlib.contextmanager
def _server(name: str, arguments: Callable[[str, str], Sequence[str]]) -> Iterator[int]:
    """Runs a server in an empty folder, on a free port of loopback."""
    # Debian keeps servers where only root looks.
    program = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    if program is None:
        raise NotHere(f"{name} is not installed")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        with socket.create_server((HOST, 0)) as free:
            port: int = free.getsockname()[1]
        command = [program, *arguments(folder, str(port))]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        try:
            _wait_for(process, name, port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], name: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=PATIENCE):
            return
        time.sleep(0.02)
    raise NotHere(f"{name} did not start")


__all__ = ["nats_jetstream", "redis_streams"]
