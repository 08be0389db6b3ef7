"""argparse with the manners of this command line: help by group, a suggestion for every typo, one line per error."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from sensorium.cli.grammar import GrammarError, rewrite
from sensorium.cli.values import Switch

EVERYTHING = "all"


class Parser(argparse.ArgumentParser):
    """common: the options of the short help; with none, --help shows all."""

    def __init__(self, *, common: Sequence[str] = (), **settings: object) -> None:
        settings.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, add_help=False, **settings)  # type: ignore[arg-type]
        self.common = set(common)
        self.add_argument(
            "-h", "--help", action="help", help="this text; --help=GROUP, --help=FLAG, --help=all for more"
        )

    def add_model(self) -> None:
        """The model by position, by --model, or from the --config file, in this order of precedence."""
        self.add_argument("model", nargs="?", default="", help="folder or hub name; none is the packaged model")
        self.add_argument("--model", "--model-tag", dest="model_flag", help=argparse.SUPPRESS)
        self.add_argument("--config-model", help=argparse.SUPPRESS)
        self.add_argument("--config", metavar="PATH", help="YAML file of flags; those given here win")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if word in ("-h", "--help") or word.startswith("--help="):
                self._help(word.partition("=")[2])
        try:
            words, twice = rewrite(words, self._option_string_actions)
        except GrammarError as error:
            self.error(str(error))
        for name in twice:
            self.warn(f"{name} is given twice; the last one counts")
        found = super().parse_args(words, namespace)
        if hasattr(found, "model_flag"):
            self._take_model(found)
        return found

    def _take_model(self, found: argparse.Namespace) -> None:
        by_flag, from_file = vars(found).pop("model_flag"), vars(found).pop("config_model")
        if by_flag and found.model:
            self.error(f"the model is named twice: {found.model!r} and --model {by_flag!r}")
        if by_flag:
            self.warn(f"--model is retired; name the model first: {self.prog} {by_flag}")
        found.model = found.model or by_flag or from_file or ""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-[^ =]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1].split(".")[0], self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else f" (see {self.prog} --help=all)"
        print(f"usage: {self.usage}\n{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def warn(self, message: str) -> None:
        print(f"{self.prog}: warning: {message}", file=sys.stderr)

    # ---- help ------------------------------------------------------------------------------------------------------

    def _help(self, topic: str) -> NoReturn:
        """Print the help for "" (the common options), all, a group or a flag, and leave."""
        if (not topic and not self.common) or topic == EVERYTHING:
            print(self.format_help(), end="")
            sys.exit(0)
        if not topic:
            chosen = [a for a in self._actions if not a.option_strings or a.dest in self.common or a.dest == "help"]
            print(self._format({"": chosen}), end="")
            print(f"\nGroups: {', '.join(self._groups())}")
            print(f"{self.prog} --help=GROUP, --help=FLAG or --help=all shows more.")
            sys.exit(0)
        groups = self._groups()
        title = next((title for title in groups if title.lower() == topic.lower()), None)
        if title is not None:
            print(self._format({title: groups[title]}), end="")
            sys.exit(0)
        wanted = topic.lstrip("-").replace("_", "-").lower()
        found = [a for a in self._actions if any(wanted in name for name in a.option_strings)]
        if not found:
            self.error(f"no group or flag is called {topic!r}; the groups are {', '.join(groups)}")
        print(self._format({"": found}), end="")
        sys.exit(0)

    def _groups(self) -> dict[str, list[argparse.Action]]:
        """Title -> options, of the groups made with add_argument_group."""
        return {group.title: group._group_actions for group in self._action_groups[2:] if group.title}

    def _format(self, sections: dict[str, list[argparse.Action]]) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        for title, actions in sections.items():
            formatter.start_section(title or "options")
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One line per option where it fits, and the default where there is one worth showing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return ", ".join(action.option_strings[:2])
        return super()._format_action_invocation(action)
