"""The options of `minippo grade` and `minippo homework`; nothing here loads torch."""

from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Declare both commands to a parser."""
    about = "grade a file of functions, or a folder of such files"
    more = (
        "Each file runs in its own process, with limits on time, memory and file size, but with "
        "your rights: grade files from people you do not trust as another user, in a container "
        "without network access."
    )
    grade = commands.add_parser("grade", help=about, description=more)
    grade.add_argument("path", type=Path, help="a file of functions, or a folder of such files")
    grade.add_argument("--key", type=Path, help="key.json from `minippo homework`")
    grade.add_argument("--tasks", nargs="+", default=[], help="functions to grade")
    grade.add_argument("--seed", help="seed of the hidden inputs")
    grade.add_argument("--summary", action="store_true", help="count the mistakes in a folder")
    grade.add_argument("--json", type=Path, help="write results.json as Gradescope reads it")
    grade.add_argument("--junit", type=Path, help="write JUnit XML")

    about = "draw homework: functions to write, with conventions other than minippo's"
    homework = commands.add_parser("homework", help=about, description=f"{about}.")
    homework.add_argument("--seed", required=True, help="names the draw, such as 2027A")
    homework.add_argument("--out", type=Path, required=True, help="output folder")
    homework.add_argument("--tasks", nargs="+", help="functions to ask for (default: all)")
    homework.add_argument("--previous", nargs="*", default=[], help="seeds of earlier years")
