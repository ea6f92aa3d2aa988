"""The command `funcconv`: look at networks in files, convert them, and run them."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._compiler import compiled_with, compiler_options
from ._draw import draw, to_mermaid
from ._errors import FuncconvError
from ._extras import needs
from ._summary import summary
from .interop import _formats as formats

_ROUNDS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status: 0, or 1 after one line about what is wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FuncconvError, OSError) as error:
        print(f"funcconv: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="funcconv", description="Look at networks in files, convert them, run them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        return found

    network = "a network: safetensors as `fc.interop.save_safetensors(graph=...)` writes it, or JSON of `Graph.to_json`"
    looked = command("summary", _summary, "Print a table of a network's nodes.")
    looked.add_argument("file", help=network)
    looked.add_argument("--batch", type=int, default=1, help="examples that the figures are for (default: %(default)s)")
    looked.add_argument("--json", action="store_true", help="print JSON instead")
    drawn = command("draw", _draw, "Draw a network.")
    drawn.add_argument("file", help=network)
    drawn.add_argument("-o", "--out", required=True, help="an .svg, .png, .pdf, .dot or .md file")
    converted = command("convert", _convert, "Convert weights from one format to another.")
    converted.add_argument("source", help=f"weights: {formats.READABLE}")
    converted.add_argument("target", help=f"where to write them: {formats.WRITABLE}")
    converted.add_argument("--graph", metavar="FILE", help=f"{network}; needed for weights of PyTorch")
    converted.add_argument(
        "--name", metavar="ENTRY=MODULE", action="append", default=[],
        help="which module of PyTorch an entry of the graph is, for every entry; without, they are paired in order",
    )  # fmt: skip
    predicted = command("predict", _predict, "Evaluate a network on an array or an image.")
    predicted.add_argument("file", help="a network with its weights, in safetensors")
    predicted.add_argument("input", help="an .npy file, (*batch, *spatial, channels), or an image, scaled to 0 to 1")
    predicted.add_argument("-o", "--out", help="an .npy file for the result; without, its largest entries are printed")
    timed = command("bench", _bench, "Time a network: compiling it, its value and its gradient.")
    timed.add_argument("file", help=network)
    timed.add_argument("--batch", type=int, default=32, help="examples (default: %(default)s)")
    return parser


def _summary(options: argparse.Namespace) -> None:
    graph, params, _ = formats.network(options.file)
    found = summary(graph, options.batch, params=params)
    print(found.to_json(indent=1) if options.json else found)


def _draw(options: argparse.Namespace) -> None:
    graph, params, _ = formats.network(options.file)
    suffix = Path(options.out).suffix.lower()
    if suffix not in (".svg", ".png", ".pdf", ".dot", ".md"):
        msg = f"draw: --out must be a file that ends in .svg, .png, .pdf, .dot or .md; got {options.out!r}"
        raise FuncconvError(msg)
    if suffix == ".md":
        Path(options.out).write_text(f"```mermaid\n{to_mermaid(graph, params=params)}```\n")
    else:
        draw(graph, options.out, params=params)


def _convert(options: argparse.Namespace) -> None:
    names = dict(each.partition("=")[::2] for each in options.name) or None
    graph = formats.network(options.graph)[0] if options.graph else None
    formats.write(options.target, formats.read(options.source, graph, names))


def _predict(options: argparse.Namespace) -> None:
    graph, params, state = formats.network(options.file)
    if params is None:
        msg = f"{options.file} has no weights"
        raise FuncconvError(msg)
    if len(graph.inputs) != 1:
        msg = f"the network takes {len(graph.inputs)} inputs, {', '.join(graph.inputs)}; predict gives it one"
        raise FuncconvError(msg)
    (shape,) = (graph.shapes(params)[name] for name in graph.inputs)
    x = jnp.asarray(_array(options.input, len(shape.shape)), shape.dtype)
    y, _ = jax.jit(graph.apply)(params, state or graph.init_state(params), x)
    if options.out:
        np.save(options.out, np.asarray(y))
        return
    for row in np.asarray(jax.tree.leaves(y)[0]).reshape(-1, jax.tree.leaves(y)[0].shape[-1]):
        best = np.argsort(-row)[:5]
        print("  ".join(f"{place}: {row[place]:.4g}" for place in best))


def _array(path: str, rank: int) -> np.ndarray:
    """Read an array, or an image with as many axes as asked."""
    try:
        if path.endswith(".npy"):
            return np.asarray(np.load(path, allow_pickle=False))
        with needs("draw", "reading an image"):
            from matplotlib import image
        pixels = image.imread(path)
    except (OSError, ValueError, SyntaxError) as error:
        msg = f"{path} cannot be read: {error}"
        raise FuncconvError(msg) from error
    pixels = pixels / 255 if pixels.dtype == np.uint8 else pixels
    return np.asarray(pixels[..., None] if pixels.ndim < rank else pixels)


def _bench(options: argparse.Namespace) -> None:
    graph, params, state = formats.network(options.file)
    params = graph.init(jax.random.key(0)) if params is None else params
    shapes, state = graph.shapes(params), state or graph.init_state(params)
    xs = [jnp.zeros((options.batch, *shapes[name].shape), shapes[name].dtype) for name in graph.inputs]
    with_options = compiler_options()

    def value(params: Any, *xs: Any) -> Any:
        return graph.apply(params, state, *xs)[0]

    def loss(params: Any, *xs: Any) -> Any:
        return sum(y.sum() for y in jax.tree.leaves(value(params, *xs)))

    for name, f in (("value", value), ("gradient", jax.grad(loss))):
        begun = time.perf_counter()
        compiled = jax.jit(compiled_with(with_options)(f), compiler_options=with_options).lower(params, *xs).compile()
        seconds = time.perf_counter() - begun
        jax.block_until_ready(compiled(params, *xs))  # type: ignore[no-untyped-call]
        taken = []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(params, *xs))  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - begun)
        ms = 1e3 * float(np.median(taken))
        print(f"{name}: {ms:.3f} ms for {options.batch} examples, {seconds:.2f} s to compile")
