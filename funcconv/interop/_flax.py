"""Weights of Flax modules, both of Linen and of NNX."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .._common.optional_packages import needs
from .._graph.declare.conv_layers import ConvTranspose
from .._graph.name.entries import tree_of
from .._graph.use.graph import Graph
from ._matching import Entry, entries, matched, trees
from ._pairing import paired


def from_linen(
    graph: Graph,
    variables: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    apply: Callable[..., Any] | None = None,
    transpose_kernel: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the weights of a Flax Linen module to the parameters and the state of a graph.

    Modules are paired with the entries that have the same shapes. If several modules have the same shapes, they are
    paired with the entries of equal names. With `apply`, they are paired by use instead: in the order in which both
    networks use them, provided that both then give the same results on random weights and inputs. The order of the
    dict is not used, because in Flax it is alphabetical.

    Args:
        graph: a graph with the same layers as the module.
        variables: for Linen `{"params": ..., "batch_stats": ...}`; for NNX `nnx.to_pure_dict(nnx.state(module))`;
            or arrays by their paths, as `read_weights` returns them.
        names: the path of a module for each entry of the graph, such as `{"conv1": "encoder/Conv_0"}`. Default: the
            pairing described above.
        apply: a function that evaluates the module, called as `apply(variables, *inputs)`: `module.apply`, or for a
            module with a `train` argument `functools.partial(module.apply, train=False)`. Default: the module is not
            evaluated.
        transpose_kernel: whether the transposed convolutions of the module were made with `transpose_kernel=True`. If
            not, their kernels are flipped and their channels exchanged. Default: False, as in Flax.

    Returns:
        `(params, state)`. `state` is `{}` if the graph has none. Dtypes are those of the module. Arrays of 64 bits are
        NumPy arrays unless `jax_enable_x64` is set, because JAX would narrow them.

    Raises:
        FuncconvError: if modules and entries cannot be paired, if more than one pairing is possible, or if the shape of
            an array differs from its entry. The message lists all differences, or the candidates.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> module = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(6)])
        >>> i, x = fc.Input("x", (6,)), jnp.ones((2, 6))
        >>> graph = fc.Graph(i, fc.serial(fc.Dense(6), jnp.tanh, fc.Dense(6))(i))
        >>> variables = module.init(jax.random.key(0), x)
        >>> params, _ = fc.interop.from_linen(graph, variables, apply=module.apply)
        >>> bool(jnp.allclose(graph(params, x), module.apply(variables, x), atol=1e-5))
        True
    """
    if any("/" in str(name) for name in variables):
        variables = tree_of(variables)
    collections = "params" in variables and set(variables) <= {"params", "batch_stats"}
    trees = list(variables.values()) if collections else [variables]

    def evaluate(modules: Mapping[str, Mapping[str, Any]], *xs: Any) -> Any:
        own = [_with_arrays(tree, modules) for tree in trees]
        return apply and apply(dict(zip(variables, own, strict=True)) if collections else own[0], *xs)

    return _converted(
        "from_linen", graph, trees, names, evaluate if apply else None, "apply=module.apply", transpose_kernel
    )


def from_nnx(
    graph: Graph,
    module: Any,
    *,
    names: Mapping[str, str] | None = None,
    call: Callable[..., Any] | None = None,
    transpose_kernel: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the weights of a Flax NNX module to the parameters and the state of a graph.

    Modules are paired with the entries that have the same shapes. If several modules have the same shapes, they are
    paired by use: in the order in which both networks use them, provided that both then give the same results on random
    weights and inputs. The order of the attributes is not used.

    Args:
        graph: a graph with the same layers as the module.
        module: an NNX module. Neither its weights nor its state change.
        names: the path of a module for each entry of the graph, such as `{"conv1": "encoder/conv"}`. Default: the
            pairing described above.
        call: a function that evaluates a copy of the module in evaluation mode, called as `call(module, *inputs)`.
            Default: `module(*inputs)`.
        transpose_kernel: whether the transposed convolutions of the module were made with `transpose_kernel=True`. If
            not, their kernels are flipped and their channels exchanged. Default: False, as in Flax.

    Returns:
        `(params, state)`. `state` is `{}` if the graph has none. Dtypes are those of the module. Arrays of 64 bits are
        NumPy arrays unless `jax_enable_x64` is set, because JAX would narrow them.

    Raises:
        FuncconvError: if Flax is not installed, if modules and entries cannot be paired, if more than one pairing is
            possible, or if the shape of an array differs from its entry. The message lists all differences, or the
            candidates.

    Example:
        >>> import funcconv as fc
        >>> from flax import nnx
        >>> x = fc.Input("x", (3,))
        >>> params, _ = fc.interop.from_nnx(fc.Graph(x, fc.Dense(2)(x)), nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> params["dense1"]["kernel"].shape
        (3, 2)
    """
    with needs("flax", "weights of NNX"):
        from flax import nnx
    definition, variables, other_state = nnx.split(module, nnx.Any(nnx.Param, nnx.BatchStat), ...)  # type: ignore[misc]
    tree = nnx.to_pure_dict(variables)

    def evaluate(modules: Mapping[str, Mapping[str, Any]], *xs: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf, variables)
        nnx.replace_by_pure_dict(own, _with_arrays(tree, modules))
        # A copy, because evaluation may change the state of a module.
        copy = nnx.merge(definition, own, other_state, copy=True)
        copy.eval()  # dropout must not draw, and batch norms must use their statistics
        return copy(*xs) if call is None else call(copy, *xs)

    return _converted("from_nnx", graph, [tree], names, evaluate, "call=lambda module, x: ...", transpose_kernel)


def _converted(
    op: str,
    graph: Graph,
    collections: Sequence[Mapping[str, Any]],
    names: Mapping[str, str] | None,
    evaluate: Callable[..., Any] | None,
    advice: str,
    transpose_kernel: bool,  # noqa: FBT001
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state of a graph with the arrays of modules."""
    modules: dict[str, dict[str, Any]] = {}
    for collection in collections:
        for module, arrays in _modules(collection).items():
            modules.setdefault(module, {}).update(arrays)

    def from_module(entry: Entry, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        params = {name: array for name, array in arrays.items() if name not in entry.state}
        if isinstance(entry.row.op, ConvTranspose) and "kernel" in params and not transpose_kernel:
            kernel = params["kernel"]  # of JAX or NumPy; its own methods keep the dtype
            if kernel.ndim > 2:
                params["kernel"] = kernel.swapaxes(-1, -2)[(slice(None, None, -1),) * (kernel.ndim - 2)]
        return params, {name: array for name, array in arrays.items() if name in entry.state}

    if names is None:
        pairs = paired(op, graph, modules, from_module, evaluate, advice)
    else:
        pairs = matched(op, entries(graph), modules, names)
    return trees(op, [(entry, module, *from_module(entry, modules[module])) for entry, module in pairs])


def _with_arrays(tree: Mapping[Any, Any], modules: Mapping[str, Mapping[str, Any]], path: Sequence[str] = ()) -> Any:
    """Return a tree of variables with the arrays of `modules` in place of its own."""
    return {
        name: _with_arrays(subtree, modules, (*path, str(name)))
        if isinstance(subtree, Mapping)
        else modules["/".join(path)][str(name)]
        for name, subtree in tree.items()
    }


def _modules(tree: Mapping[Any, Any], path: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the arrays of each module by its path."""
    modules: dict[str, dict[str, Any]] = {}
    arrays = {str(name): value for name, value in tree.items() if not isinstance(value, Mapping)}
    if arrays:
        modules["/".join(path)] = arrays
    for name, subtree in tree.items():
        if isinstance(subtree, Mapping):
            modules |= _modules(subtree, (*path, str(name)))
    return modules
