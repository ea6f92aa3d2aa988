"""Networks of which you can get changed copies."""

from collections.abc import Mapping
from typing import Any, TypeVar

from ..._common.types import Params
from . import editing
from .fold_norms import fold_norms
from .parts import NetworkWithParts
from .prune import Pruned, channel_groups, prune

Same = TypeVar("Same", bound="EditableNetwork")


class EditableNetwork(NetworkWithParts):
    """A network with the methods that return a changed copy. The network itself does not change.

    Nodes and parameter entries that a change does not concern keep their names, so their parameters still fit. If you
    change a node of a nested graph, all nodes keep their names, but they are no longer a nested graph.
    """

    def replace(self: Same, name: str, layer: Any) -> Same:
        """Return the graph with another layer at a node.

        Args:
            name: name of the node.
            layer: the new layer, or a function of arrays. It takes the inputs of the node. Its `name` or, without one,
                the name of the node is the name of the new node and of its entry in the parameters.

        Returns:
            A graph.

        Raises:
            FuncconvError: if the graph has no such node, if `layer` is not one layer or function, if its entry belongs
                to other nodes too, or if a node does not accept its inputs any more; the message names it.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.Conv(2, 3), fc.global_pool)(x))
            >>> graph.replace("conv2", fc.Conv(16, 1)).shapes()["conv2"].shape
            (6, 6, 16)
        """
        return editing.replaced(self, name, layer)

    def remove(self: Same, name: str, *, keep: str | None = None) -> Same:
        """Return the graph without a node. What needs its value gets one of its inputs.

        Args:
            name: name of the node.
            keep: name of the input that takes the place of the node. Default: None, its only input.

        Returns:
            A graph.

        Raises:
            FuncconvError: if the graph has no such node, if it has several inputs and `keep` is none of them, or if a
                node does not accept its inputs any more; the message names it.

        Example:
            >>> import funcconv as fc
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.Dropout(0.5), fc.global_pool)(x))
            >>> graph.remove("dropout1").nodes
            ('x', 'conv1', 'global_pool1')
        """
        return editing.removed(self, name, keep)

    def insert_after(self: Same, name: str, layer: Any) -> Same:
        """Return the graph with one more layer after a node. What read the value of the node reads that of the layer.

        Args:
            name: name of a node or an input.
            layer: the layer, or a function of one array. Without a `name` its node has the name of its kind and a
                number that no other node has.

        Returns:
            A graph.

        Raises:
            FuncconvError: if the graph has no such node, if `layer` is not one layer or function, or if a node does not
                accept its inputs any more; the message names it.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.global_pool)(x))
            >>> graph.insert_after("conv1", jax.nn.relu).nodes
            ('x', 'conv1', 'relu1', 'global_pool1')
        """
        return editing.inserted(self, name, layer)

    def fold_norms(self: Same, params: Params, state: Mapping[str, Any]) -> tuple[Same, dict[str, Any], dict[str, Any]]:
        """Fold batch norms into the layers before them, for evaluation.

        A batch norm with running statistics multiplies each channel by a number and adds another. Where its input is
        the value of a `Conv`, `ConvTranspose`, `LocalConv` or `Dense` that nothing else reads, these numbers go into
        the kernel and the bias of that layer:

        `kernel * scale / sqrt(var + epsilon)` and `(bias - mean) * scale / sqrt(var + epsilon) + shift`.

        A layer without a bias gets one. Layers and norms that share parameters with other nodes are left as they are.
        Norms inside of an `fc.repeat` are folded in each copy.

        Args:
            params: the parameter tree.
            state: the state, with the running statistics.

        Returns:
            `(graph, params, state)`: the graph without these norms, its parameters and its state. In evaluation it
            computes the same outputs, up to rounding.

        Raises:
            FuncconvError: if the parameters or the state are not those of the graph.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3, bias=False), fc.BatchNorm(), jax.nn.relu)(x))
            >>> params, state, images = graph.init(jax.random.key(0)), graph.init_state(), jnp.ones((2, 8, 8, 1))
            >>> folded, own_params, own_state = graph.fold_norms(params, state)
            >>> folded.nodes, own_state
            (('x', 'conv1', 'relu1'), {})
            >>> y, _ = graph.apply(params, state, images)
            >>> jnp.allclose(folded(own_params, images), y, atol=1e-5).item()
            True
        """
        return fold_norms(self, params, state)

    def prune(self: Same, params: Params, keep: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> Pruned:
        """Remove channels, with all parameters that belong to them.

        Channels are followed through the graph. With a channel, the parameters of norms for it and the part of each
        kernel that reads it are removed, also after pools, flattening and concatenations. Channels that are added to
        or multiplied by it, and those of its group in a grouped or depthwise kernel or in a `GroupNorm`, are removed
        with it. `removed` reports them.

        The outputs do not change if the values of the removed channels are zero where kernels and sums read them, for
        example because a kernel, its bias and the parameters of the norm after it are zero for these channels.

        Channels of inputs and outputs cannot be removed. Neither can channels that a node mixes other than by a kernel,
        such as those of a `LayerNorm`, a softmax or a function that counts channels.

        Args:
            params: the parameter tree. You can pass any tree like it, such as a gradient or the moments of an
                optimizer.
            keep: for the names of nodes, the channels to keep: their numbers, in any order, or one boolean for each.
                They stay in the order that they have.
            state: the state of the layers that keep one. Default: None, for a graph without state.

        Returns:
            A named tuple `(graph, params, state, removed)`. `removed` has the removed channels of each node with a
            kernel. Nodes and entries keep their names.

        Raises:
            FuncconvError: if the parameters or the state are not those of the graph, or there is no such node or
                channel; if a channel cannot be removed; if one of two channels that can only be removed together is to
                be kept; or if no channel would be left.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 1))
            >>> y = fc.Conv(4, 1)(x)
            >>> y = fc.Conv(4, 3, padding=1)(y) + y
            >>> graph = fc.Graph(x, fc.serial(jax.nn.relu, fc.global_pool, fc.Dense(2))(y))
            >>> pruned = graph.prune(graph.init(jax.random.key(0)), {"conv1": [0, 2, 3]})
            >>> pruned.removed
            {'conv1': (1,), 'conv2': (1,)}
            >>> jax.tree.map(jnp.shape, pruned.params["conv2"])
            {'bias': (3,), 'kernel': (3, 3, 3, 3)}
        """
        return prune(self, params, keep, state)

    def channel_groups(self, params: Params | None = None) -> list[dict[str, tuple[int, ...]]]:
        """Return the sets of channels that can only be removed together.

        Args:
            params: the parameter tree, of which only the shapes count. Default: None, for a graph whose layers draw all
                parameters.

        Returns:
            For each set that `prune` can remove, the channels of each node with a kernel.

        Raises:
            FuncconvError: if the parameters are not those of the graph, or needed.

        Example:
            >>> import funcconv as fc
            >>> x = fc.Input("x", (8, 8, 1))
            >>> y = fc.Conv(2, 1)(x)
            >>> graph = fc.Graph(x, fc.serial(fc.global_pool, fc.Dense(2))(y + fc.Conv(2, 3, padding=1)(y)))
            >>> graph.channel_groups()
            [{'conv1': (0,), 'conv2': (0,)}, {'conv1': (1,), 'conv2': (1,)}]
        """
        return channel_groups(self, params)
