"""The command line as a real process: exit codes, streams and the working directory are what is tested.

Most of what a run of it costs is the start of Python and the imports. One process does both for all of them
and forks for each run: that child is what ``python -m ironbus.cli`` is after its imports.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARENT = """
import contextlib, json, os, socket, sys
import ironbus.cli.app
with contextlib.suppress(ImportError):
    import typer._adapters  # some versions import this when a command runs

jobs = socket.socket(fileno=int(sys.argv[1]))
while True:
    job, streams, _, _ = socket.recv_fds(jobs, 1 << 16, 3)
    if not job:
        sys.exit()
    child = os.fork()
    if not child:
        break
    for stream in streams:
        os.close(stream)
    jobs.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

jobs.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
folder, *sys.argv[1:] = json.loads(job)
os.chdir(folder)
ironbus.cli.main()
"""


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Run]


@functools.cache
def parent() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Where it takes its jobs from, and itself; it ends with this process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = there.fileno()
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(number)], pass_fds=[number], start_new_session=True)
    there.close()
    here.settimeout(60)

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here, process


def command_line(folder: Path) -> Cli:
    """Runs ``ironbus`` in a folder."""

    def run(*args: str | Path, stdin: bytes = b"") -> Run:
        source, sink = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            job = json.dumps([str(folder), *map(str, args)]).encode()
            jobs, process = parent()
            socket.send_fds(jobs, [job], [source, out.fileno(), err.fileno()])
            os.close(source)
            # It may end without having read all of it.
            with contextlib.suppress(BrokenPipeError), open(sink, "wb") as file:
                file.write(stdin)
            try:
                code = int(jobs.recv(64))
            except TimeoutError:
                # With the run, whose answer must not be taken for that of the next.
                os.killpg(process.pid, signal.SIGKILL)
                parent.cache_clear()
                raise
            out.seek(0)
            err.seek(0)
            return Run(code, out.read().decode(), err.read().decode())

    return run
