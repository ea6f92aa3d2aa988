"""Reductions and functions along axes, by the names under which files know them.

In a graph they see one example. Here their arrays have `lead` batch axes in front, one or none, from which axes are
counted.
"""

import inspect
from collections.abc import Callable
from typing import Any

from .example_axes import axes_of, axis_of
from .lazy_torch import functional, torch


def _reduction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reduction along axes as jax.numpy has it, of one that takes axes and `keepdims` as PyTorch has them."""

    def apply(x: Any, axis: Any = None, *, keepdims: bool = False, lead: int, **options: Any) -> Any:
        axes = axes_of(axis, x, lead)
        if not axes:  # PyTorch would reduce all axes
            return reduce(x.unsqueeze(-1), (-1,), keepdims=False, **options)
        return reduce(x, axes, keepdims=keepdims, **options)

    # Only these options are accepted, which `counterpart` checks before anything is computed.
    of_apply, of_reduce = (list(inspect.signature(function).parameters.values()) for function in (apply, reduce))
    options = [parameter for parameter in of_reduce if parameter.kind is parameter.KEYWORD_ONLY]
    others = [parameter for parameter in options if parameter.name != "keepdims"]
    apply.__signature__ = inspect.Signature([*of_apply[:-1], *others])  # type: ignore[attr-defined]
    return apply


def _mean(x: Any, axes: Any, *, keepdims: bool) -> Any:
    return torch.mean(x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype()), axes, keepdims)


def _product(x: Any, axes: Any, *, keepdims: bool) -> Any:
    for axis in sorted((i % x.ndim for i in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _median(x: Any, axes: Any, *, keepdims: bool) -> Any:
    axes = [i % x.ndim for i in axes]
    shape = [1 if i in axes else size for i, size in enumerate(x.shape)]
    others = [i for i in range(x.ndim) if i not in axes]
    ordered = x.permute(*others, *axes).flatten(len(others)).sort(-1).values
    count = ordered.shape[-1]
    y = (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
    y = torch.where(x.isnan().amax(axes), torch.nan, y)
    return y.reshape(shape) if keepdims else y


def _variance(x: Any, axes: Any, *, keepdims: bool, ddof: int = 0) -> Any:
    return torch.var(x, axes, correction=ddof, keepdim=keepdims)


def _deviation(x: Any, axes: Any, *, keepdims: bool, ddof: int = 0) -> Any:
    return torch.std(x, axes, correction=ddof, keepdim=keepdims)


def _largest(x: Any, axes: Any, *, keepdims: bool) -> Any:
    return torch.amax(x, axes, keepdims)


def _smallest(x: Any, axes: Any, *, keepdims: bool) -> Any:
    return torch.amin(x, axes, keepdims)


def _range(x: Any, axes: Any, *, keepdims: bool) -> Any:
    return _largest(x, axes, keepdims=keepdims) - _smallest(x, axes, keepdims=keepdims)


def _total(x: Any, axes: Any, *, keepdims: bool) -> Any:
    return torch.sum(x, axes, keepdims)


def _norm(x: Any, axes: Any, *, keepdims: bool, order: Any) -> Any:
    return torch.linalg.vector_norm(x, order, axes, keepdims)


def _with_correction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def apply(x: Any, axes: Any, *, keepdims: bool, correction: Any) -> Any:
        return reduce(x, axes, keepdims=keepdims, ddof=correction)

    return apply


def _position(name: str) -> Callable[..., Any]:
    def apply(x: Any, axis: int | None = None, *, keepdims: bool = False, lead: int) -> Any:
        if axis is None:
            return getattr(torch, name)(x.flatten(lead), -1)
        return getattr(torch, name)(x, axis_of(axis, x, lead), keepdims)

    return apply


# along an axis -------------------------------------------------------------------------------------------------


def _softmax(x: Any, axis: Any = -1, *, lead: int) -> Any:
    axes = axes_of(axis, x, lead)
    if len(axes) == 1:
        return torch.softmax(x, axes[0])
    y = torch.exp(x - x.detach().amax(axes, keepdim=True))
    return y / y.sum(axes, keepdim=True)


def _log_softmax(x: Any, axis: Any = -1, *, lead: int) -> Any:
    axes = axes_of(axis, x, lead)
    return x - torch.logsumexp(x, axes, keepdim=True)


def _glu(x: Any, axis: int = -1, *, lead: int) -> Any:
    return functional.glu(x, axis_of(axis, x, lead))


def _standardized(x: Any, axis: Any = -1, *, epsilon: float = 1e-5, lead: int) -> Any:
    axes = axes_of(axis, x, lead)
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)


def _cumulated(x: Any, *, axis: int, lead: int) -> Any:
    return torch.cumsum(x, axis_of(axis, x, lead))


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "jax.numpy.max": _reduction(_largest),
    "jax.numpy.min": _reduction(_smallest),
    "jax.numpy.mean": _reduction(_mean),
    "jax.numpy.median": _reduction(_median),
    "jax.numpy.prod": _reduction(_product),
    "jax.numpy.ptp": _reduction(_range),
    "jax.numpy.std": _reduction(_deviation),
    "jax.numpy.sum": _reduction(_total),
    "jax.numpy.var": _reduction(_variance),
    "jax.numpy.argmax": _position("argmax"),
    "jax.numpy.argmin": _position("argmin"),
    "funcconv.torch.average": _reduction(_mean),
    "funcconv.torch.total": _reduction(_total),
    "funcconv.torch.variance": _reduction(_with_correction(_variance)),
    "funcconv.torch.deviation": _reduction(_with_correction(_deviation)),
    "funcconv.torch.vector_norm": _reduction(_norm),
    "funcconv.torch.cumulated": _cumulated,
    "jax.nn.softmax": _softmax,
    "jax.nn.log_softmax": _log_softmax,
    "jax.nn.glu": _glu,
    "jax.nn.standardize": _standardized,
}
