"""The operations that compute a function or its derivatives, drawn from the traced program."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from .._common.errors import FuncconvError
from .._common.traced_programs import called, is_call, is_transposed
from . import picture as _picture
from .picture import MARKED, PLAIN, TINTS, Arrow, Box, Picture
from .render import Drawing

_BACKWARD, _CONSTANT = TINTS[5], TINTS[7]
_SHOWN = ("axes", "dimensions", "permutation", "exponent", "y", "new_dtype", "dimension", "axis", "length")


def draw_autodiff(
    f: Callable[..., Any],
    *args: Any,
    path: str | Path | None = None,
    opened: bool = True,
    direction: str = "TB",
    limit: int = 500,
) -> Drawing:
    r"""Draw the operations that compute `f(*args)`: a function, a gradient or a Hessian-vector product.

    The function is traced. Each operation of the traced program is a box with its name, and the arrows have shapes. To
    see a derivative, pass it:

        fc.draw_autodiff(jax.grad(loss), params, x, path="gradient.svg")

    Inputs are round. They have the names of the arguments and the paths of their leaves. Outputs have a double border.
    Operations of the backward pass have another colour, and the values that it uses from the forward pass (residuals)
    have dashed arrows. Operations that no output needs are left out.

    Args:
        f: a function of arrays or trees of arrays.
        *args: its arguments. `jax.ShapeDtypeStruct` can replace an array.
        path: path of the file to write, which ends in `.svg`, `.png`, `.pdf` or `.dot`. Default: None, no file.
        opened: whether a called function (`jax.jit`, `jax.nn.relu`, `jax.checkpoint`) is drawn as a frame with its
            operations, or as one box. A loop is always one box. Default: True, a frame.
        direction: direction of the arrows: `"TB"` from top to bottom, `"LR"` from left to right, `"BT"` or `"RL"`.
            Default: `"TB"`.
        limit: maximum number of boxes. Default: 500.

    Returns:
        A `Drawing`. A notebook shows it as a picture. `.dot` is its text in the DOT language, and `.save(path)` writes
        a file.

    Raises:
        FuncconvError: if the program needs more boxes than `limit`, if the direction or the ending of the path is
            unknown, or if the file is a picture and no program can draw it.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> norm = lambda x: jnp.sqrt((x * x).sum())
        >>> print(*fc.draw_autodiff(norm, jnp.ones(3)).dot.splitlines()[4:7], sep="\n")
          n0 [label="x", fillcolor="#dcdcdc", style="filled,rounded"]
          n1 [label="mul", fillcolor="#f4f4f4"]
          n2 [label="reduce_sum\naxes (0,)", fillcolor="#f4f4f4"]
    """
    traced, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    # A traced derivative also has operations that its result does not need, such as the value of the loss.
    used, kept = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    program = _Program(opened=opened, limit=limit)
    names = [name for name, keep in zip(_names(f, args), kept, strict=True) if keep]
    start: dict[Any, int | None] = {}
    for var, name in zip(used.invars, names, strict=True):
        start[var] = program.box(Box((name,), MARKED, round=True))
    constants = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    for var in used.constvars:
        start[var] = program.box(Box((f"constant {np.shape(constants[var])}",), _CONSTANT, round=True))
    results = program.run(used, start, (), backward=False)
    for name, out, source in zip(_paths(shape, "output"), used.outvars, results, strict=True):
        end = program.box(Box((name,) if source is not None else (name, _value(out)), MARKED, double=True))
        if source is not None:
            program.arrows.append(Arrow(source, end, _short(out.aval)))
    drawing = Drawing(_picture.dot(Picture(program.boxes, program.arrows), direction=direction))
    if path is not None:
        drawing.save(path)
    return drawing


class _Program:
    """The boxes and arrows of a program, while they are found."""

    def __init__(self, *, opened: bool, limit: int) -> None:
        self.boxes: list[Box] = []
        self.arrows: list[Arrow] = []
        self._opened, self._limit = opened, limit
        self._backward: set[int] = set()
        self._calls = 0

    def box(self, box: Box) -> int:
        """Add a box, and return its number."""
        self.boxes.append(box)
        return len(self.boxes) - 1

    def run(
        self, jaxpr: Any, start: dict[Any, int | None], group: tuple[str, ...], *, backward: bool
    ) -> list[int | None]:
        """Add the operations of a program, and return the boxes that its results come from."""
        source = dict(start)
        for eqn in jaxpr.eqns:
            # JAX names the operations that it transposes, which are those of the backward pass.
            later = backward or is_transposed(eqn)
            inner = called(eqn) if self._opened else None
            if inner is not None:
                self._calls += 1
                name = str(eqn.params.get("name") or eqn.primitive.name)
                inside = {
                    var: None if isinstance(given, core.Literal) else source.get(given)
                    for var, given in zip(inner.invars, eqn.invars, strict=True)
                }
                frame = (*group, f"{name} ({self._calls})") if len(inner.eqns) > 1 else group
                results = self.run(inner, inside, frame, backward=later)
            else:
                results = [self._operation(eqn, source, group, backward=later)] * len(eqn.outvars)
            source.update(zip(eqn.outvars, results, strict=True))
        return [None if isinstance(var, core.Literal) else source.get(var) for var in jaxpr.outvars]

    def _operation(self, eqn: Any, source: dict[Any, int | None], group: tuple[str, ...], *, backward: bool) -> int:
        known = [None if isinstance(var, core.Literal) else source.get(var) for var in eqn.invars]
        numbers = [_value(var) for var, box in zip(eqn.invars, known, strict=True) if box is None]
        title = eqn.primitive.name
        if is_call(eqn):
            title = f"{eqn.params.get('name') or title}(...)"
        lines = [" ".join([title, *numbers])]
        lines += [f"{name} {eqn.params[name]}" for name in _SHOWN if eqn.params.get(name) not in (None, ())]
        number = self.box(Box(tuple(lines), _BACKWARD if backward else PLAIN, group))
        if number >= self._limit:
            msg = (
                f"draw_autodiff: the program has more than limit={self._limit} operations; draw a part of it, "
                "draw calls as one box with opened=False, or raise the limit"
            )
            raise FuncconvError(msg)
        if backward:
            self._backward.add(number)
        for var, box in zip(eqn.invars, known, strict=True):
            if box is not None:
                residual = backward and box not in self._backward and self.boxes[box].fill == PLAIN
                self.arrows.append(Arrow(box, number, _short(var.aval), residual))
        return number


def _names(f: Callable[..., Any], args: Sequence[Any]) -> list[str]:
    """Return a name for each leaf of the arguments: the argument's and the path to the leaf."""
    try:
        declared = [
            parameter.name
            for parameter in inspect.signature(f).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):  # a builtin without a signature
        declared = []
    names = [*declared, *(f"argument {i + 1}" for i in range(len(declared), len(args)))]
    return [name for arg, title in zip(args, names, strict=False) for name in _paths(arg, title)]


def _paths(tree: Any, title: str) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join([title, *(_key(key) for key in path)]) for path, _ in leaves]


def _key(key: Any) -> str:
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _value(var: Any) -> str:
    """Return what stands for a value that no box computes: a number, or what it is."""
    if isinstance(var, core.Literal) and np.ndim(var.val) == 0:
        return f"{var.val:g}" if np.isrealobj(var.val) and not isinstance(var.val, bool) else str(var.val)
    return _short(var.aval)


def _short(aval: Any) -> str:
    """Return a type as in `float32[8,28,28]`."""
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]" if hasattr(aval, "shape") else str(aval)
