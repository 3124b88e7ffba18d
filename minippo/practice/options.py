"""A dataclass as command-line options: the docstring under each field is its help.

A comment `# ---- title ----` in the class starts a group.
"""

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


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
        if get_origin(kinds[name]) is Literal:
            options["choices"] = get_args(kinds[name])
        else:
            options["type"] = _reader(kinds[name])
            options["metavar"] = getattr(kinds[name], "__name__", str(kinds[name])).upper()
        if kinds[name] is bool:
            options |= {"nargs": "?", "const": True}
        group.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), **options)


def take(options: argparse.Namespace, kind: type) -> Any:
    """Build the dataclass from the parsed options."""
    return kind(**{f.name: getattr(options, f.name) for f in fields(kind)})


def _reader(kind: Any) -> Callable[[str], Any]:
    """Make the parser of an option's text; "none" switches an optional one off."""
    allowed = get_args(kind) or (kind,)

    def read(text: str) -> Any:
        if NoneType in allowed and text.lower() == "none":
            return None
        if bool in allowed:
            return ("false", "true", "0", "1").index(text.lower()) % 2 == 1
        return allowed[0](text)

    read.__name__ = " or ".join("none" if k is NoneType else k.__name__ for k in allowed)
    return read
