"""A bad network in one process: a TCP proxy that stalls, cuts into odd pieces and fails when it is told to."""

from __future__ import annotations

import contextlib
import random
import socket
import threading


class Proxy:
    """Nothing of it waits for a clock: bytes flow while a gate is open, and stand still while it is not."""

    def __init__(self, port: int, seed: int = 0) -> None:
        """port: what it stands before; seed: of the sizes of the pieces that bytes arrive in."""
        self._target = port
        self._rng = random.Random(seed)
        self._gates = {"up": threading.Event(), "down": threading.Event()}
        for gate in self._gates.values():
            gate.set()
        self._is_out = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, way: str) -> None:
        """Nothing arrives that way, and nothing is lost. way: up, to the server, or down."""
        self._gates[way].clear()

    def release(self, way: str) -> None:
        self._gates[way].set()

    def cut(self) -> None:
        """All connections end, and no new one comes about until `mend`."""
        self._is_out = True
        for pair in self._pairs:
            for one in pair:
                _end(one)
        self._pairs.clear()
        for gate in self._gates.values():
            gate.set()

    def mend(self) -> None:
        self._is_out = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_out:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs.append((near, far))
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 16):
                while data:
                    self._gates[way].wait()
                    piece = self._rng.randint(1, 4000)
                    sink.sendall(data[:piece])
                    data = data[piece:]
        except OSError:
            pass
        for one in (source, sink):
            _end(one)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
