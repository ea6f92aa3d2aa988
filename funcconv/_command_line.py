"""The command `funcconv`: look at networks in files, convert them, run them, and start scripts."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ._bench import bench, check_precision
from ._common.errors import FuncconvError
from ._common.files import existing_file, write_file
from ._common.optional_packages import needs
from ._inspect.draw import draw, to_mermaid
from ._inspect.render import FORMATS
from ._inspect.summary import summary
from ._inspect.versions import versions
from ._launch import DESCRIPTION, add_arguments, run, split
from .interop import _formats as formats

_INPUT = (
    "an .npy file, (*batch, *spatial, channels), of numbers that the network's dtype holds exactly; or an image, "
    "scaled to 0 to 1"
)
_NUMPY_KINDS = "biufc"  # of dtypes that NumPy itself has, so that .npy files do
_ENDINGS = f".{', .'.join(FORMATS)} or .md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status: 0, or 2 after one line about what is wrong."""
    own_arguments, script_arguments = split(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own_arguments, argparse.Namespace(script_arguments=script_arguments))
    try:
        options.run(options)
        sys.stdout.flush()
    except Exception as error:  # files can be damaged in ways that nobody thought of
        text = " ".join(str(error).split())
        if not isinstance(error, FuncconvError):  # whose texts are complete lists
            text = f"{'' if isinstance(error, OSError) else f'{type(error).__name__}: '}{text[:1000]}"
        print(f"funcconv: {text}", file=sys.stderr)
        _discard_output()
        return 2
    except KeyboardInterrupt:
        return 130  # what shells report for a command that was interrupted
    return 0


def _discard_output() -> None:
    """Drop output that cannot be written. Python would try again when it ends, and print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print the line, and exit with status 2."""
        self.exit(2, f"funcconv: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="funcconv", description="Look at networks in files, convert them, run them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(run=run)
        return subparser

    network = "a network: safetensors as `fc.interop.save_safetensors(graph=...)` writes it, or JSON of `Graph.to_json`"
    summary_parser = command("summary", _summary, "Print a table of a network's nodes.")
    summary_parser.add_argument("file", help=network)
    summary_parser.add_argument(
        "--batch", type=int, default=1, help="examples that the figures are for (default: %(default)s)"
    )
    summary_parser.add_argument("--json", action="store_true", help="print JSON instead")
    draw_parser = command("draw", _draw, f"Draw a network, in one of the formats {_ENDINGS}.")
    draw_parser.set_defaults(refuse=draw_parser.error)  # the message of argparse would not list the formats
    draw_parser.add_argument("file", help=network)
    draw_parser.add_argument(
        "-o", "--out", help=f"the file to write, in the format of its ending: {_ENDINGS} (Mermaid in Markdown)"
    )
    convert_parser = command("convert", _convert, "Convert weights from one format to another.")
    convert_parser.add_argument("source", help=f"weights: {formats.READABLE}")
    convert_parser.add_argument("target", help=f"where to write them: {formats.WRITABLE}")
    convert_parser.add_argument("--graph", metavar="FILE", help=f"{network}; needed for weights of PyTorch")
    convert_parser.add_argument(
        "--key",
        metavar="ENTRY",
        help="the entry of a checkpoint that has the weights, such as state_dict or ema/state_dict; without, the only "
        "entry that can have them",
    )
    convert_parser.add_argument(
        "--name",
        metavar="ENTRY=MODULE",
        action="append",
        default=[],
        help="which module of PyTorch or Flax an entry of the graph is, for every entry; without, they are paired",
    )
    convert_parser.add_argument(
        "--pairing",
        choices=["order"],
        help="pair the modules of PyTorch in their order with the entries of the graph; without, by names and shapes",
    )
    predict_parser = command("predict", _predict, "Evaluate a network on an array or an image.")
    predict_parser.add_argument("file", help="a network with its weights, in safetensors")
    predict_parser.add_argument("input", help=_INPUT)
    predict_parser.add_argument(
        "-o", "--out", help="an .npy file for the result; without, its largest entries are printed"
    )
    bench_parser = command("bench", bench, "Time a network: compiling it, its value and its gradient.")
    bench_parser.add_argument("file", help=network)
    bench_parser.add_argument("--batch", type=int, default=32, help="examples (default: %(default)s)")
    bench_parser.add_argument("--tuning", metavar="FILE", help="measured forms, as `fc.Tuning.save` writes them")
    add_arguments(command("run", run, DESCRIPTION))
    command("versions", _versions, "Print versions, devices, processor and options, for a bug report.")
    return parser


def _summary(options: argparse.Namespace) -> None:
    graph, params, _ = formats.network(options.file)
    table = summary(graph, options.batch, params=params)
    print(table.to_json(indent=1) if options.json else table)


def _draw(options: argparse.Namespace) -> None:
    if options.out is None:
        options.refuse(f"draw: --out is missing; give it the file to write, which ends in {_ENDINGS}")
    graph, params, _ = formats.network(options.file)
    suffix = Path(options.out).suffix.lower()
    if suffix == ".md":
        text = f"```mermaid\n{to_mermaid(graph, params=params)}```\n"
        write_file("draw", options.out, text.encode())
    elif suffix.removeprefix(".") in FORMATS:
        draw(graph, options.out, params=params)
    else:
        msg = f"draw: --out must be a file that ends in {_ENDINGS}; got {options.out!r}"
        raise FuncconvError(msg)


def _convert(options: argparse.Namespace) -> None:
    names = dict(pair.partition("=")[::2] for pair in options.name) or None
    if len(names or ()) < len(options.name) or not all("=" in pair for pair in options.name):
        msg = f"convert: each --name must be ENTRY=MODULE, once for an entry; got {', '.join(options.name)}"
        raise FuncconvError(msg)
    graph = formats.network(options.graph)[0] if options.graph is not None else None
    weights = formats.read(options.source, graph, names, options.key, options.pairing)
    formats.write(options.target, weights)
    for note in weights.notes:
        print(f"funcconv: {options.source}: {note}", file=sys.stderr)


def _predict(options: argparse.Namespace) -> None:
    graph, params, state = formats.network(options.file)
    if params is None:
        msg = f"{options.file} has no weights"
        raise FuncconvError(msg)
    if len(graph.inputs) != 1:
        msg = f"the network takes {len(graph.inputs)} inputs, {', '.join(graph.inputs)}; predict gives it one"
        raise FuncconvError(msg)
    if len(graph.outputs) != 1:
        msg = f"the network has {len(graph.outputs)} outputs, {', '.join(graph.outputs)}; predict shows one"
        raise FuncconvError(msg)
    shapes, state = graph.shapes(params), state or graph.init_state(params)
    x = shapes[graph.inputs[0]]
    check_precision(options.file, params, state, x)
    # Only the ending can tell numbers from an image before the file is read.
    read = _numbers if options.input.endswith(".npy") else _pixels
    y, _ = jax.jit(graph.apply)(params, state, jnp.asarray(read(options.input, x)))
    values = np.asarray(jax.tree.leaves(y)[0])
    if options.out is not None:
        if values.dtype.kind not in _NUMPY_KINDS:
            msg = f"predict: the result is {values.dtype}, which an .npy file does not have; leave out --out"
            raise FuncconvError(msg)
        content = io.BytesIO()
        np.save(content, values)
        write_file("predict", options.out, content.getvalue())
        return
    for row in values.reshape(-1, *shapes[graph.outputs[0]].shape[-1:] or (1,)):
        best = np.argsort(-row.astype(np.result_type(row.real.astype(np.float32), np.float64)))[:5]
        print("  ".join(f"{place}: {row[place]:.4g}" for place in best))


def _versions(_: argparse.Namespace) -> None:
    print(versions())


def _numbers(path: str, wanted: Any) -> np.ndarray:
    """Read an array from an .npy file, in the dtype of the network if it has the same numbers in it."""
    size = os.path.getsize(existing_file("predict", path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False) if size else None
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} cannot be read: it is not an .npy file of numbers: {' '.join(str(error).split())[:200]}"
        raise FuncconvError(msg) from error
    if not isinstance(array, np.memmap):
        content = "an archive of arrays" if size else "empty"
        msg = f"{path} cannot be read: it is {content}, and should be an .npy file, as numpy.save writes it"
        raise FuncconvError(msg)
    if array.dtype.kind not in _NUMPY_KINDS or array.offset + array.nbytes != size:
        msg = f"{path} cannot be read: it should be {array.dtype} {array.shape}, and has {size - array.offset} bytes"
        raise FuncconvError(msg)
    if not _fits(array, wanted.dtype):
        msg = (
            f"{path} has {array.dtype} numbers that {wanted.dtype}, which the network takes, does not hold exactly; "
            f"round them yourself: numpy.save(path, array.astype({wanted.dtype.name!r}))"
        )
        raise FuncconvError(msg)
    return np.asarray(array).astype(wanted.dtype)


def _fits(array: np.ndarray, dtype: Any) -> bool:
    """Return whether a dtype holds the numbers of an array exactly."""
    if array.dtype == dtype or array.dtype.kind == "b" or not array.size:
        return True
    if array.dtype.kind in "iu":
        lowest, highest = int(array.min()), int(array.max())
        if jnp.issubdtype(dtype, jnp.integer):
            limits = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
            return int(limits.min) <= lowest and highest <= int(limits.max)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return False
        digits = jnp.finfo(dtype).nmant + 1  # type: ignore[no-untyped-call]
        return max(-lowest, highest) <= 1 << int(digits)
    complex_to_real = array.dtype.kind == "c" and not jnp.issubdtype(dtype, jnp.complexfloating)
    if complex_to_real or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    with np.errstate(all="ignore"):
        return bool(np.array_equal(array.astype(dtype).astype(array.dtype), array, equal_nan=True))


def _pixels(path: str, wanted: Any) -> np.ndarray:
    """Read an image, with as many axes as the network takes."""
    existing_file("predict", path)
    with needs("draw", "reading an image"):
        from matplotlib import image
    try:
        pixels = image.imread(path)
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} cannot be read: it is neither an .npy file nor an image: {' '.join(str(error).split())[:200]}"
        raise FuncconvError(msg) from error
    if not jnp.issubdtype(wanted.dtype, jnp.inexact):
        msg = f"{path} is an image, which is scaled to 0 to 1, but the network takes {wanted.dtype}; pass an .npy file"
        raise FuncconvError(msg)
    pixels = pixels / np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else pixels
    return np.asarray(pixels[..., None] if pixels.ndim < len(wanted.shape) else pixels).astype(wanted.dtype)
