"""A name server of our own for a server under test: put this folder first on its PYTHONPATH.

$HOSTILE_NAMES is a JSON file, name -> list of answers given one after the other, each a list of addresses; the last one
stays. "hang" as an answer is none for a minute. Every name asked for is a line in $HOSTILE_NAMES + ".asked".
"""

import json
import os
import socket
import time

_FILE = os.environ["HOSTILE_NAMES"]
with open(_FILE) as _file:
    _ANSWERS = json.load(_file)
_COUNTS = {}
_real = socket.getaddrinfo


def _look_up(host, port, *args, **kwargs):
    if host not in _ANSWERS:
        return _real(host, port, *args, **kwargs)
    with open(_FILE + ".asked", "a") as asked:
        asked.write(f"{host}\n")
    _COUNTS[host] = _COUNTS.get(host, 0) + 1
    answers = _ANSWERS[host]
    answer = answers[min(_COUNTS[host], len(answers)) - 1]
    if answer == "hang":
        time.sleep(60)
        raise OSError("no answer")
    return [
        (socket.AF_INET6 if ":" in text else socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in answer
    ]


socket.getaddrinfo = _look_up
