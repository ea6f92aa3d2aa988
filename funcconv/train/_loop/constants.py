"""Texts of the constants in functions and traced programs, which can be compared between two processes."""

import dataclasses
import enum
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_MAX_TEXT_LETTERS = 200  # longer texts are cut, and get a digest
_MAX_SHOWN_NUMBERS = 16  # of an array; larger arrays are shown by their digest
_MAX_HASHED_NUMBERS = 1 << 20  # of an array; the values of larger ones are not compared, to save time
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)


def constants_of(value: Any) -> dict[str, str]:
    """Return the numbers, texts and arrays that functions, such as those of an optimizer, were made with.

    These are the variables of closures and the arguments of `functools.partial`, also inside tuples, dicts and other
    functions.

    Args:
        value: a function or a container of functions, such as `optax.adam(0.1)`.

    Returns:
        A text for each, by names such as `"b1 of scale_by_adam"`. The learning rate is called `"learning_rate"`.
    """
    texts: dict[str, str] = {}
    for owner, name, constant in _constants(value, "", "", set()):
        text = f"{name} of {owner}" if owner else name
        if text == "step_size of scale" and isinstance(constant, float | int) and constant < 0:
            text, constant = "learning_rate", -constant  # optax scales by the negative one
        number = 1
        while (unique := text if number == 1 else f"{text} ({number})") in texts:
            number += 1
        texts[unique] = short(constant)
    return texts


def short(value: Any) -> str:
    """Return a text of a value that is the same in each process; a long text is cut and gets a digest."""
    text = _text(value)
    if len(text) <= _MAX_TEXT_LETTERS:
        return text
    return f"{text[:_MAX_TEXT_LETTERS]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"


def program_text(program: Any) -> str:
    """Return a text that differs if two programs differ: in operations, their operands, options or constants.

    It contains no names of functions and no addresses, and does not depend on the devices.

    Args:
        program: a `ClosedJaxpr`.
    """
    lines: list[str] = []
    _add_program(program, lines)
    return "\n".join(lines)


def _constants(value: Any, owner: str, name: str, seen: set[int]) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, _PLAIN) or _is_array(value):
        if name:
            yield owner, name, value
        return
    if id(value) in seen or inspect.ismodule(value) or isinstance(value, type):
        return
    seen.add(id(value))  # functions may refer to each other; what is shared counts once
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _constants(item, owner, f"{name}[{key!r}]" if name else str(key), seen)
    elif isinstance(value, tuple | list):
        is_plain = all(isinstance(item, _PLAIN) for item in value)
        if is_plain and name:
            yield owner, name, value
            return
        for item in value:
            yield from _constants(item, owner, name, seen)
    elif isinstance(value, functools.partial):
        owner = _name(value.func)
        for i, item in enumerate(value.args):
            yield from _constants(item, owner, f"argument {i + 1}", seen)
        yield from _constants(value.keywords, owner, "", seen)
        yield from _constants(value.func, owner, "", seen)
    elif inspect.ismethod(value):
        yield from _constants(value.__func__, owner, name, seen)
        yield from _constants(value.__self__, owner, name, seen)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _constants(getattr(value, field.name, None), type(value).__name__, field.name, seen)
    elif inspect.isfunction(value):
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield from _constants(cell.cell_contents, _name(value), variable, seen)
            except ValueError:  # the variable has no value yet
                continue
    elif hasattr(value, "__wrapped__"):  # such as a function that `jax.jit` returned
        yield from _constants(value.__wrapped__, owner, name, seen)


def _name(function: Any) -> str:
    """Return the name of the outermost function in which a function was made, such as `scale_by_adam`."""
    return str(getattr(function, "__qualname__", type(function).__name__)).split(".<locals>")[0]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, _PLAIN):
        return str(value) if isinstance(value, np.dtype) else repr(value)
    if _is_array(value):
        return _array_text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_text, value)) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(f'{name}={_text(item)}' for name, item in fields)})"
    if isinstance(value, type) or callable(value):
        return _name(value)
    return type(value).__name__


def _array_text(array: Any) -> str:
    kind = f"{array.dtype}{list(array.shape)}"
    # Other processes hold parts of this array.
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        return kind
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.size > _MAX_HASHED_NUMBERS:
        return kind
    values = np.asarray(array)
    if values.size <= _MAX_SHOWN_NUMBERS and values.dtype != object:
        return f"{kind} {values.tolist()}"
    return f"{kind} sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:16]}"


def _add_program(program: Any, lines: list[str]) -> None:
    jaxpr = getattr(program, "jaxpr", program)
    numbers = {variable: i for i, variable in enumerate([*jaxpr.constvars, *jaxpr.invars])}

    def named(operand: Any) -> str:
        if hasattr(operand, "val"):  # a literal
            return _text(operand.val)
        return str(numbers.setdefault(operand, len(numbers)))

    lines.append(f"of {' '.join(_kind(variable) for variable in numbers)}")
    lines.extend(map(_text, getattr(program, "consts", ())))
    for eqn in jaxpr.eqns:
        operands, results = " ".join(map(named, eqn.invars)), " ".join(map(named, eqn.outvars))
        kinds = " ".join(map(_kind, eqn.outvars))
        lines.append(f"{results} {kinds} = {eqn.primitive.name} {operands} {_options(eqn)}")
        for inner in core.jaxprs_in_params(eqn.params):
            _add_program(inner, lines)
    lines.append(f"to {' '.join(map(named, jaxpr.outvars))}")


def _options(eqn: Any) -> str:
    """Return the options of an operation, without inner programs, names of functions and shardings."""
    return ", ".join(
        f"{name}={_text(value)}"
        for name, value in sorted(eqn.params.items())
        if not callable(value) and name not in ("name", "sharding", "in_shardings", "out_shardings", "mesh")
    )


def _kind(variable: Any) -> str:
    aval = variable.aval
    return f"{getattr(aval, 'dtype', type(aval).__name__)}{list(getattr(aval, 'shape', ()))}"
