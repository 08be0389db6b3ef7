"""The command line. Each command is a module that is imported only when it is named, so that --help stays quick."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module

from sensorium import __version__
from sensorium.cli.flags import COMMON
from sensorium.cli.options import refuse, settings
from sensorium.cli.parser import Parser
from sensorium.errors import ConfigError, SensoriumError

COMMANDS = {
    "serve": ("sensorium.cli.serve", "serve a model over the OpenAI HTTP API, with a page at /"),
    "chat": ("sensorium.cli.chat", "talk to a model in the terminal, with pictures, sounds and videos"),
    "talk": ("sensorium.cli.talk", "full duplex in the terminal: it hears, sees and speaks at once"),
    "complete": ("sensorium.cli.complete", "continue one prompt in the model's own notation"),
    "speak": ("sensorium.cli.speak", "read a text aloud into a file, in the voice of a recording"),
    "run-batch": ("sensorium.cli.run_batch", "answer the requests of an OpenAI batch file"),
    "bench": ("sensorium.cli.bench", "measure latency and throughput of a model in this process"),
    "inspect": ("sensorium.cli.inspect", "show the modules of a checkpoint and their memory, without loading it"),
    "doctor": ("sensorium.cli.doctor", "show the environment, the kernels chosen and a model's memory plan"),
}
# Commands of two words.
PARTS = {
    "bench": {
        "latency": ("sensorium.cli.bench_latency", "batches: to the first token, between tokens, end to end"),
        "throughput": ("sensorium.cli.bench_throughput", "many requests at once: requests and tokens a second"),
        "media": ("sensorium.cli.bench_media", "pictures, sounds and videos: every stage, and items a second"),
        "serve": ("sensorium.cli.bench_serve", "load on a running server: latencies, rates, goodput"),
        "startup": ("sensorium.cli.bench_startup", "from nothing to ready, part by part, and to the first token"),
    },
}
# Other names by which people look for a command.
ALIASES = {"collect-env": "doctor", "mm-processor": "media"}


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    name = ALIASES.get(argv[0], argv[0]) if argv else ""
    if name not in COMMANDS:
        return _top(argv)
    (module, summary), words = COMMANDS[name], argv[1:]
    parts = PARTS.get(name, {})
    if words and (part := ALIASES.get(words[0], words[0])) in parts:
        name, (module, summary), words = f"{name} {part}", parts[part], words[1:]
    command = import_module(module)
    prog = f"sensorium {name}"
    parser = Parser(
        prog=prog,
        usage=f"{prog} [MODEL] [options]",
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_listing(parts, f"{prog} ...") if name in PARTS else None,
        common=COMMON if name == "serve" else (),
    )
    command.add_arguments(parser)
    args = parser.parse_args(words)
    try:
        return command.run(parser, settings(parser, args))
    except ConfigError as error:
        refuse(parser, error)
        return _complain(error)
    except (SensoriumError, OSError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130


def _complain(error: Exception) -> int:
    print(f"sensorium: {error}", file=sys.stderr)
    return 1


def _listing(commands: Mapping[str, tuple[str, str]], title: str) -> str:
    width = max(map(len, commands))
    return "\n".join([f"{title}:", *(f"  {name:{width}}  {summary}" for name, (_, summary) in commands.items())])


def _top(argv: list[str]) -> int:
    parser = Parser(
        prog="sensorium",
        usage="sensorium [-h] [--version] COMMAND ...",
        description="A small serving engine for models that see, hear and speak.",
        epilog=f"{_listing(COMMANDS, 'commands')}\n\n`sensorium COMMAND --help` lists a command's options.",
    )
    parser.add_argument("-v", "--version", action="version", version=f"sensorium {__version__}")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    parser.parse_args(argv)
    parser.print_help()
    return 0
