"""Streams: a graph computed on a signal that arrives in chunks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Params
from ..._windows.layout import as_array
from ..evaluate.call import mode_of
from ..use.graph import Graph
from .advance import Signal, advance, first_kept
from .plan import long_specs, planned

Carry = Mapping[str, Any]


def stream(graph: Graph, axis: int = -2, *, state: Mapping[str, Any] | None = None) -> "Stream":
    """Evaluate a graph on a signal that arrives in chunks.

    If you concatenate what `step` returns for all chunks and then what `flush` returns, and drop the first `delay`
    positions, you get the output of the graph for the whole signal, up to rounding. Each layer keeps the positions that
    it will need again. The delay is that of layers that look ahead; causal networks have none.

    Args:
        graph: a graph whose layers compute on windows or on single positions: convolutions, transposed convolutions,
            pools, dense layers, functions of single positions, norms over channels, batch norms in evaluation, and
            `fc.repeat` of these. All its inputs are signals. The declared length of the signal does not matter.
        axis: the axis of the signal, counted from the end. It must be the first axis after the batch axes. Default: -2,
            for `(*batch, time, channels)`.
        state: the state of a graph that has one, with the running statistics of batch norms. Default: None.

    Returns:
        A `Stream`.

    Raises:
        FuncconvError: if an operation needs the whole signal, such as `global_pool`, if branches that are joined
            advance differently, if the signal is padded with something else than zeros, or if strides within an
            `fc.repeat` make its copies keep different numbers of positions; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (100, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3, padding="SAME"), jnp.tanh, fc.Conv(1, 3, padding="CAUSAL"))(x))
        >>> params, signal = graph.init(jax.random.key(0)), jnp.sin(jnp.arange(60.0)).reshape(1, 60, 1)
        >>> stream = fc.stream(graph)
        >>> carry, step, outputs = stream.init(params, 1), jax.jit(stream.step), []
        >>> for start in range(0, 60, 20):
        ...     carry, y = step(params, carry, signal[:, start : start + 20])
        ...     outputs.append(y)
        >>> y = jnp.concatenate([*outputs, stream.flush(params, carry)], axis=1)
        >>> stream.delay, y.shape
        (1, (1, 61, 1))
        >>> whole = fc.Input("x", (60, 1))
        >>> expected = fc.Graph(whole, graph(whole))(params, signal)
        >>> jnp.allclose(y[:, stream.delay :], expected, atol=1e-5).item()
        True
    """
    return Stream(graph, axis, state)


class Stream:
    """A graph that is evaluated on a signal chunk by chunk, made by `fc.stream`.

    Attributes:
        delay: number of positions by which the output lags behind; a list for several outputs.
        multiple: the length of a chunk must be a multiple of this number of samples.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (100, 1))
        >>> stream = fc.stream(fc.Graph(x, fc.serial(fc.Conv(4, 8, stride=4), fc.Conv(1, 5, padding="SAME"))(x)))
        >>> stream.multiple, stream.delay
        (4, 3)
    """

    def __init__(self, graph: Graph, axis: int = -2, state: Mapping[str, Any] | None = None) -> None:
        for row in graph._signature:
            if len(row.shape) + axis != 0:
                msg = (
                    f"stream: the signal must be the first axis of each input after the batch axes; input {row.name!r} "
                    f"has shape {row.shape}. Pass axis={-len(row.shape)}, or move the axis; got axis={axis!r}"
                )
                raise FuncconvError(msg)
        self._graph = graph
        mode_of(graph, state)  # which refuses a state of another graph
        self._state = state
        self._plan = planned(graph)
        self.multiple = math.lcm(*(flow.rate.denominator for plan in self._plan.with_inner for flow in plan.flows))
        outputs = [self._plan.flows[i] for i in graph._results]
        delays = [flow.delay for flow in outputs]
        self.delay: Any = delays[0] if len(delays) == 1 else delays
        needed = max([0, *(math.ceil(flow.left / flow.rate) for flow in outputs)])
        self._last = -(-needed // self.multiple) * self.multiple  # samples that the last chunk has
        # So many samples suffice to know that no position that is kept or new is before the signal.
        kept = max(count for plan in self._plan.with_inner for count in plan.kept)
        most = max(math.ceil((flow.delay + kept) / flow.rate) for plan in self._plan.with_inner for flow in plan.flows)
        self._most = self.multiple * (1 + most)

    def init(self, params: Params, *batch: int, dtype: DTypeLike | None = None) -> Carry:
        """Return what is kept before the first chunk.

        Args:
            params: the parameter tree.
            *batch: sizes of the batch axes of the chunks.
            dtype: dtype of the signal. Default: None, that of the declared inputs.

        Returns:
            A tree of arrays, whose shapes stay the same. All kept positions of one dtype are one array, `(*batch,
            numbers)`; for each `fc.repeat` there is another one, `(copies, *batch, numbers)`.
        """
        specs = long_specs(self._graph, dtype)
        empty = [jnp.zeros((*batch, 0), x.dtype) for x in specs]
        kept = first_kept(self._plan, specs, params, batch)
        return {"samples": jnp.zeros((), jnp.int32), "inputs": empty, **kept}

    def step(self, params: Params, carry: Carry, *chunks: Any) -> tuple[Carry, Any]:
        """Compute the next positions of the output.

        Compile it once: `jax.jit(stream.step)`. For chunks of a few samples
        `jax.jit(functools.partial(stream.step, params), donate_argnums=0)` takes less time: it is called with fewer
        arrays.

        Args:
            params: the parameter tree.
            carry: what `init` or the last `step` returned.
            *chunks: the next samples of each input, `(*batch, samples, ...)`.

        Returns:
            The next carry, and the outputs in the structure of the graph's outputs.

        Raises:
            FuncconvError: if the number of samples is not a positive multiple of `multiple`, if the parameters are not
                those of the graph, or if the carry was made for others.
        """
        arrays = self._checked(chunks, carry)
        batch = carry["inputs"][0].shape[:-1]
        values, kept = advance(
            self._plan, carry, params, self._state, arrays, Signal(carry["samples"], batch, ended=False)
        )
        samples = jnp.minimum(carry["samples"] + arrays[0].shape[len(batch)], self._most).astype(jnp.int32)
        outputs = [values[i] for i in self._graph._results]
        return {**carry, "samples": samples, **kept}, jax.tree.unflatten(self._graph._tree, outputs)

    def flush(self, params: Params, carry: Carry) -> Any:
        """Return the positions of the output that are left after the last chunk.

        Args:
            params: the parameter tree.
            carry: what the last `step` returned.

        Returns:
            The outputs, which have as many positions as were not delivered yet, also none.
        """
        batch = carry["inputs"][0].shape[:-1]
        chunks = [
            jnp.zeros((*batch, max(self._last, self.multiple), *row.shape[1:]), empty.dtype)
            for row, empty in zip(self._graph._signature, carry["inputs"], strict=True)
        ]
        values, _ = advance(self._plan, carry, params, self._state, chunks, Signal(carry["samples"], batch, ended=True))
        axis = len(batch)
        flows = [self._plan.flows[i] for i in self._graph._results]
        left = [
            lax.slice_in_dim(values[i], 0, max(flow.left, 0), axis=axis)
            for i, flow in zip(self._graph._results, flows, strict=True)
        ]
        return jax.tree.unflatten(self._graph._tree, left)

    def _checked(self, chunks: Sequence[Any], carry: Carry) -> list[Array]:
        """Return the chunks as arrays; refuse those of other shapes or dtypes than the stream has."""
        signature = self._graph._signature
        if len(chunks) != len(signature):
            msg = f"stream: the graph has {len(signature)} inputs; got {len(chunks)} chunks. Pass one for each input"
            raise FuncconvError(msg)
        arrays = [as_array("stream", f"the chunk of {row.name!r}", x) for row, x in zip(signature, chunks, strict=True)]
        for row, x, empty in zip(signature, arrays, carry["inputs"], strict=True):
            *batch, _ = empty.shape
            axis, samples = len(batch), arrays[0].shape[len(batch) : len(batch) + 1]
            if (x.shape, x.dtype) != ((*batch, *samples, *row.shape[1:]), empty.dtype):
                shape = ", ".join(map(str, (*batch, "samples", *row.shape[1:])))
                given = f"{x.dtype}{list(x.shape)}"
                msg = f"stream: the next chunk of {row.name!r} must be {empty.dtype} of shape ({shape}); got {given}"
                raise FuncconvError(msg)
            if not x.shape[axis] or x.shape[axis] % self.multiple:
                msg = (
                    f"stream: the strides of the graph need chunks of a multiple of {self.multiple} samples; "
                    f"got {x.shape[axis]}. Collect samples until there are enough"
                )
                raise FuncconvError(msg)
        return arrays
