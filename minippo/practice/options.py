"""A dataclass as command-line options: the docstring under each field is its help.

A comment `# ---- title ----` in the class starts a group.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, get_type_hints

from minippo._validate import alternatives


def documented(kind: type) -> list[tuple[str, str, str]]:
    """(title of the group, name, docstring) of each field."""
    pattern = r'^    # ---- (.+?) ----$|^    (\w+): [^\n]*\n    """(.*?)"""$'
    found, title = [], ""
    for heading, name, text in re.findall(pattern, inspect.getsource(kind), re.M | re.S):
        title = heading or title
        if name:
            found.append((title, name, " ".join(text.split())))
    return found


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """One option per field, `--a_field` or `--a-field`, in the groups of the class."""
    kinds, all_fields = get_type_hints(kind), {f.name: f for f in fields(kind)}
    groups: dict[str, Any] = {}
    for title, name, text in documented(kind):
        group = groups.setdefault(title, parser.add_argument_group(title))
        default = all_fields[name].default
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "dest": name}
        options |= {"required": True} if default is MISSING else {"default": default}
        allowed = alternatives(kinds[name])
        options["type"] = _reader(allowed)
        if words := [kind for kind in allowed if isinstance(kind, str)]:
            options["choices"] = [*words, None] if NoneType in allowed else words
            options["metavar"] = "{" + ",".join([str(x).lower() for x in options["choices"]]) + "}"
        else:
            options["metavar"] = getattr(kinds[name], "__name__", str(kinds[name])).upper()
        if kinds[name] is bool:
            options |= {"nargs": "?", "const": True}
        group.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), **options)


def take(options: argparse.Namespace, kind: type) -> Any:
    """Build the dataclass from the parsed options."""
    return kind(**{f.name: getattr(options, f.name) for f in fields(kind)})


def _reader(allowed: Sequence[Any]) -> Callable[[str], Any]:
    """Make the parser of an option's text; "none" switches an optional one off."""

    def read(text: str) -> Any:
        if NoneType in allowed and text.lower() == "none":
            return None
        if bool in allowed:
            return ("false", "true", "0", "1").index(text.lower()) % 2 == 1
        return text if isinstance(allowed[0], str) else allowed[0](text)

    read.__name__ = " or ".join(
        "none" if k is NoneType else str(getattr(k, "__name__", k)) for k in allowed
    )
    return read
