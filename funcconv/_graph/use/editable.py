"""Networks of which you can get changed copies."""

from collections.abc import Mapping
from typing import Any, TypeVar

from ..._common.types import Params
from . import editing
from .fold_norms import fold_norms
from .parts import NetworkWithParts

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
