"""What the long runs share: a server as users run it, what its processes take, percentiles, one JSON file as result."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "sensorium" / "packaged" / "sensorium-tiny"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def engine_pid(self) -> int:
        return int(re.findall(r"(?:engine is process|back \(process) (\d+)", "".join(self.log))[-1])

    @property
    def restarts(self) -> int:
        return "".join(self.log).count("back (process")


@contextmanager
def serving(*flags: str, model: Path = MODEL, apart: bool = False) -> Iterator[Server]:
    """apart: in a session of its own, which Linux gives its own share of the cores."""
    command = [sys.executable, "-m", "sensorium", "serve", str(model), "--port", "0", "--served-model-name", "tiny"]
    command += ["--no-access-log", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=apart) as process:
        server = Server(process)
        threading.Thread(target=lambda: server.log.extend(process.stderr or ()), daemon=True).start()
        try:
            while not any("ready after" in line for line in server.log):
                if process.poll() is not None:
                    raise SystemExit("".join(server.log))
                time.sleep(0.05)
            found = re.search(r"listening on (http://\S+)", "".join(server.log))
            assert found
            server.url = found[1]
            yield server
        finally:
            process.terminate()
            process.wait(60)


def rank(pid: int | str, nice: int) -> None:
    """Place the session of a process before or behind others: Linux shares cores between sessions (autogroups)."""
    Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used so far, those of its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, engine_pid: int) -> dict[str, int]:
    """Resident bytes of the server, its engine, and everything else below it."""
    found = {"server": _resident(pid), "engine": _resident(engine_pid), "others": 0}
    below = [pid]
    while below:
        parent = below.pop()
        for child in _children(parent):
            below.append(child)
            found["others"] += _resident(child) if child != engine_pid else 0
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass  # it ended meanwhile
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def table(rows: Sequence[Sequence[Any]]) -> None:
    """Rows in columns, the first one being their names."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def report(result: dict[str, Any], path: str | None) -> None:
    """Print the result, and write it with what it was measured on."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result = {"commit": commit.stdout.strip(), "cores": os.cpu_count(), "python": platform.python_version(), **result}
    text = json.dumps(result, indent=1)
    print(text)
    if path:
        Path(path).write_text(text + "\n")
