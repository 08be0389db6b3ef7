"""Real `sensorium serve` processes from the commands of the seeds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping

KEPT = 2
"""Servers alive at a time; the one not used for longest stops first."""


class Refused(Exception):
    """The server ended before it was ready; the message is what it wrote."""


class Server:
    """One process. url: where it answers, with /v1."""

    def __init__(self, arguments: list[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sensorium", *arguments, "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._ready.wait()
        if self._process.poll() is not None or not (found := re.search(r"listening on (http://\S+)", self.log)):
            self.stop()
            raise Refused(self.log)
        self.url = f"{found[1]}/v1"

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stderr
        with self._process.stderr as stream:
            for line in stream:
                self._lines.append(line)
                if "Application startup complete" in line:
                    self._ready.set()
        self._process.wait()
        self._ready.set()


class Servers:
    """Started when first asked for, and shared."""

    def __init__(self) -> None:
        self._alive: OrderedDict[tuple[str, ...], Server] = OrderedDict()

    def get(self, command: str, *extra: str, model: str | None = None, env: Mapping[str, str] | None = None) -> Server:
        """The server of a command as the seed writes it; model takes the place of the one named there."""
        program, verb, name, *flags = shlex.split(command.replace("\\\n", " "), comments=True)
        assert (program, verb) == ("vllm", "serve")
        arguments = (verb, model or name, *flags, *extra)
        if arguments not in self._alive:
            while len(self._alive) >= KEPT:
                self._alive.popitem(last=False)[1].stop()
            self._alive[arguments] = Server(list(arguments), env or {})
        self._alive.move_to_end(arguments)
        return self._alive[arguments]

    def close(self) -> None:
        for server in self._alive.values():
            server.stop()
