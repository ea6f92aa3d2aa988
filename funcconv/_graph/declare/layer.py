"""The base class of layers: descriptions of ops, compared by value, that make nodes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._windows.reach import Reach
from .inference import shapes
from .node import Application, Node, check_name
from .portable import portable


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A description of an op, compared by value; called on nodes, it gives a node.

    While a graph is declared a layer with parameters also has an identity: one object called twice is one set of
    weights, two equal objects are two.

    Attributes:
        name: of its nodes and, if `params` is None, of its entry in the parameters.
        params: the name of its entry; layers that give the same share it.
    """

    name: str | None = None
    params: str | None = None

    parametric: ClassVar[bool] = False
    stateful: ClassVar[bool] = False  # whether it keeps a state beside its parameters, under the same name
    random: ClassVar[bool] = False  # whether it draws in training
    optional: ClassVar[bool] = False  # whether its entry may be missing, because its value does not depend on it
    arity: ClassVar[int | None] = 1  # how many nodes it is called on; None for any number
    takes_masked: ClassVar[bool] = False  # whether `run` takes `Masked` inputs; other layers have a rule in `masked`

    def __post_init__(self) -> None:
        for field in (declared for declared in fields(self) if declared.init):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple | np.generic):  # lists do not hash, files know Python's numbers alone
                object.__setattr__(self, field.name, _frozen(value))
            elif field.name.endswith("dtype") and value is not None:  # jnp.float32 and "float32" are one
                object.__setattr__(self, field.name, _dtype(self, field.name, value))
        for name in (self.name, self.params):
            check_name(name)

    def __call__(self, *inputs: Node) -> Node:
        """Apply to nodes."""
        check_nodes(self, inputs)
        if self.arity not in (None, len(inputs)):
            msg = (
                f"{self!r} takes {self.arity} input; it was called on {len(inputs)} nodes. Call it on one node; "
                "fc.concat(a, b) and fc.add(a, b) merge several"
            )
            raise FuncconvError(msg)
        return Application(self, inputs, self.name)

    def __repr__(self) -> str:
        required = [repr(getattr(self, f.name)) for f in fields(self) if not f.kw_only]
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.kw_only and f.init and getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(required + changed)})"

    # The default of pickle would copy the attributes, and not check the options of another version.
    def __reduce__(self) -> Any:
        options = {field.name: portable(getattr(self, field.name)) for field in fields(self) if field.init}
        return _restored, (type(self), options)

    # A copy is equal, and another set of weights: the identity of a layer is what shares them.
    def __copy__(self) -> "Layer":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layer":
        del memo
        return replace(self)  # its functions are the same, so that it is equal; its identity is new

    def decided(self, entry: Any, xs: Any) -> "Layer":
        """Return the layer as it is evaluated, for parameters and inputs of these shapes."""
        del entry, xs
        return self

    @property
    def undecided(self) -> bool:
        """Whether `decided` has something to decide."""
        return False

    @property
    def copies(self) -> int | None:
        """How many copies of a network it is, each with its own parameters; None for other layers."""
        return None

    @property
    def label(self) -> str:
        """What automatic names are made of: `conv_transpose` for a ConvTranspose, `rms_norm` for an RMSNorm."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    @property
    def draws(self) -> bool:
        """Whether it can draw its parameters."""
        return self.parametric

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...] | None:
        """Return what the result sees of each axis of its one input, along the same axis; None: all of it, summed up.

        By default nothing is known, and the program says it.
        """
        del shapes
        return None

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw parameters for inputs of these shapes, which have no batch axes."""
        raise NotImplementedError

    def first_state(self, *shapes: Shape) -> Any:
        """Return the state that it starts from, for inputs of these shapes, which have no batch axes."""
        raise NotImplementedError

    # These two are called for nodes. Most layers need no dtypes.
    def draw_for(self, key: Array, *xs: Any) -> Any:
        """Draw parameters for inputs of these shapes and dtypes, without batch axes."""
        return self.draw(key, *shapes(xs))

    def first_state_for(self, entry: Any, *xs: Any) -> Any:
        """Return the state that it starts from, for parameters and inputs of these shapes and dtypes."""
        del entry
        return self.first_state(*shapes(xs))

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the op on arrays that all have these batch axes in front; one with a state, in its first."""
        raise NotImplementedError

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Compute the op, in training or not, and the next state."""
        del key, train
        return self.apply(params, *xs, batch=batch), state

    def run_inside(
        self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool, inside: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Compute a layer that is copies of a network; return the values inside too, by their names."""
        raise NotImplementedError

    def with_folded_norms(self, params: Any, state: Any, x: Any) -> tuple["Layer", Any, Any]:
        """Return a layer that is copies of a network without the batch norms inside, its parameters and its state."""
        raise NotImplementedError


def check_nodes(layer: object, inputs: Sequence[object]) -> None:
    """Refuse inputs that are not nodes."""
    for input_node in inputs:
        if not isinstance(input_node, Node):
            hint = "; pass an fc.Input, or what a layer returned"
            if hasattr(input_node, "shape"):
                hint = (
                    "; for arrays, call the op itself, such as fc.conv(params, x). To use an array in a node, write "
                    "fc.node(lambda x: x + array, node), or make it a parameter"
                )
            elif isinstance(input_node, Layer) or getattr(input_node, "takes_nodes", False):
                hint = "; call the layer on nodes first"
            msg = f"{layer!r} is called on nodes while a graph is declared; got {type(input_node).__name__}{hint}"
            raise FuncconvError(msg)


def _restored(kind: type[Layer], options: dict[str, Any]) -> Layer:
    try:
        return kind(**options)
    except TypeError as error:
        msg = (
            f"the pickle has a {kind.__name__} of another version, with the options {sorted(options)}: {error}. Read "
            "it with the version of funcconv that wrote it"
        )
        raise FuncconvError(msg) from error


def _dtype(layer: Layer, name: str, value: Any) -> Any:
    try:
        return jnp.dtype(value)
    except TypeError as error:
        msg = f"{type(layer).__name__}: {name} must be a dtype, such as jnp.float32; got {value!r}: {error}"
        raise FuncconvError(msg) from None


def _frozen(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
