"""Options of commands whose work several processes share."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recover.execution.shares import Shard
    from recover.execution.sharing import PartResult


def add_sharing_arguments(parser: ArgumentParser) -> None:
    """Declare how the work is shared."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="do part I of N: as many processes, on any machines with a common file system, write"
        " one output; the one that ends last gives it its name; each can be repeated",
    )


def _shard(text: str) -> "Shard":
    from recover.errors import UsageError
    from recover.execution.shares import Shard

    try:
        return Shard.parse(text)
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from None


def print_part(args: Namespace, part: "PartResult") -> None:
    """What a process has done that was not the last one."""
    from recover.cli._console import count, print_json
    from recover.cli._streams import say

    if args.json:
        print_json(part.to_json())
        return
    say(
        f"part {part.shard} of {part.output} is done: {count(part.n_weights)} weights in"
        f" {part.seconds:.2f} s"
    )
    if part.missing:
        shown = ", ".join(map(str, part.missing[:20])) + (", ..." if part.missing[20:] else "")
        say(f"not done yet: {shown} of {part.shard.n}")
    else:
        say(f"all parts are done; the process of part {part.finished_by} finishes")
