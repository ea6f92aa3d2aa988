"""Several processes that train one model: they compare settings, stop after the same step, and find a lost one."""

import atexit
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..._common.errors import FuncconvError
from . import watch as _watch

_MESSAGE_BYTES = 1024  # of every message, because collective operations need equal shapes
_TEXT_LETTERS = 150  # of the text in a message; JSON may write a letter as 6 bytes
_PORT_SECONDS = 5.0  # between a broken connection to a process and the end of its port, at most
_CONNECTION_WORDS = ("gloo", "nccl", "connection", "unavailable", "socket", "heartbeat", "coordination")


class Processes:
    """The processes whose devices share arrays. If that is one process, nothing is exchanged.

    All processes must call the same method at the same point of the run, because each call waits for the others; only
    `close` does not wait. All messages have one form, so that a process that fails at any point can tell the others,
    whatever they are waiting for.

    Args:
        devices: the devices that hold the shared arrays.
    """

    def __init__(self, devices: Iterable[jax.Device]) -> None:
        first_devices: dict[int, jax.Device] = {}
        for device in sorted(devices, key=lambda entry: entry.id):
            first_devices.setdefault(device.process_index, device)
        self._numbers, self._own = sorted(first_devices), jax.process_index()
        self.together = len(first_devices) > 1 and self._own in first_devices
        self.is_first = self._own == min(self._numbers, default=self._own)
        self.over = False  # a process failed and all know of it, or messages no longer arrive
        self.broken = False  # messages no longer arrive
        self._resume = "Start all processes again with the same arguments."
        self._listener: socket.socket | None = None
        self._helper: subprocess.Popen[str] | None = None
        self._addresses: dict[int, dict[str, Any]] = {}
        if self.together:
            mesh = Mesh(np.array([first_devices[number] for number in self._numbers]), ("process",))
            self._rows = NamedSharding(mesh, PartitionSpec("process"))  # type: ignore[no-untyped-call]
            replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
            self._gather = jax.jit(lambda x: x, out_shardings=replicated)

    def meet(self, folder: str | None) -> None:
        """Exchange addresses, so that an error can name a process that is gone.

        Args:
            folder: the folder of checkpoints, or None. The advice on how to resume names it.
        """
        if not self.together:
            return
        outcome = f"go on from the last whole checkpoint in {folder}" if folder else "begin anew, without checkpoint="
        self._resume = f"To resume, start all processes again with the same arguments. They {outcome}."
        atexit.register(self.close)  # else the helper would report a normal end
        self._listener = socket.create_server(("", 0))  # any free port
        address = {"host": socket.gethostname(), "port": self._listener.getsockname()[1], "pid": os.getpid()}
        rows = self._exchange(address)
        self._stop_if_failed(rows)
        self._addresses = dict(zip(self._numbers, rows, strict=True))
        if sys.executable:  # empty if Python is embedded in another program
            # In a session of its own, so that Ctrl-C in a terminal does not end the helper. Isolated, so that it starts
            # fast.
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", _watch.__file__], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            message = {"own": self._own, "addresses": self._addresses, "resume": self._resume}
            self._tell(json.dumps(message))

    def check(self, values: Mapping[str, str]) -> None:
        """Refuse to continue if the processes have different values.

        Args:
            values: texts by their names. A name that ends with an index, `"params/w[0:2]"`, need not be known to all.

        Raises:
            FuncconvError: with each difference, in every process.
        """
        if not self.together:
            return
        text = json.dumps(dict(values), sort_keys=True)
        # Values are usually equal, so digests are enough. The texts are sent only if they differ.
        messages = self._exchange({"digest": hashlib.sha256(text.encode()).hexdigest()})
        self._stop_if_failed(messages)
        if len({message.get("digest") for message in messages}) > 1:
            texts = [json.loads(item) for item in self._exchange_texts(text)]
            differences = _differences(dict(zip(self._numbers, texts, strict=True)))
            if differences:
                self.over = True
                lines = "\n  ".join(differences[:20])
                msg = (
                    f"train: the processes are to train one model, but differ:\n  {lines}\n"
                    "Give all processes the same seeds, arguments and versions."
                )
                raise FuncconvError(msg)

    def agree(self, reason: str = "") -> str:
        """Return why the run stops, if a process has a reason; an empty text if none has."""
        if not self.together or self.over:
            return reason
        messages = self._exchange({"stop": reason[:_TEXT_LETTERS]})
        self._stop_if_failed(messages)
        reasons: dict[int, str] = {
            number: message["stop"]
            for number, message in zip(self._numbers, messages, strict=True)
            if message.get("stop")
        }
        if not reasons:
            return ""
        first, *further = dict.fromkeys(reasons.values())
        if further or len(reasons) < len(self._numbers):
            return f"{first} (process {', '.join(map(str, reasons))} of {len(self._numbers)})"
        return first

    def everywhere(self, condition: bool) -> bool:  # noqa: FBT001
        """Whether a condition holds in every process; False if a process does not answer."""
        if not self.together:
            return condition
        return not self.broken and all(row.get("holds") for row in self._exchange({"holds": condition}))

    def fail(self, error: BaseException) -> FuncconvError | None:
        """Tell the others about an error. If the error is that a process is gone, return one that names the process."""
        if not self.together or self.over:
            return None
        self.over = True
        text = f"{type(error).__name__}: {error}"
        is_connection_error = any(word in text.lower() for word in _CONNECTION_WORDS)
        gone = self._missing(silent=False) if is_connection_error else []
        if not gone:
            try:
                self._exchange({"failed": text[:_TEXT_LETTERS]})
            except Exception:
                self.broken = True
                gone = self._missing(silent=True)
        if not gone:
            return None
        self.broken = True
        return FuncconvError(f"train: {_watch.describe(gone, self._addresses, self._resume)}")

    def _missing(self, *, silent: bool) -> list[int]:
        """Return the processes that are gone, after a while, because a connection can break before a port is closed."""
        end = time.monotonic() + _PORT_SECONDS
        while not (gone := _watch.missing(self._addresses, self._own, silent=silent)) and time.monotonic() < end:
            time.sleep(0.1)
        return gone

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Tell the others about an error that leaves the block."""
        try:
            yield
        except BaseException as error:
            other = self.fail(error)
            self.close()
            if other:
                raise other from error
            raise

    def close(self) -> None:
        """Close the port and the helper that `meet` opened. The helper is told that this process ends normally."""
        atexit.unregister(self.close)
        if self._listener:
            self._listener.close()
        if self._helper:
            self._tell("done")
            self._helper.communicate()
        self._listener = self._helper = None

    def _tell(self, line: str) -> None:
        if self._helper and self._helper.stdin:
            with suppress(OSError):  # it was ended by hand
                self._helper.stdin.write(line + "\n")
                self._helper.stdin.flush()

    def _stop_if_failed(self, messages: list[dict[str, Any]]) -> None:
        failed = {
            number: message["failed"]
            for number, message in zip(self._numbers, messages, strict=True)
            if "failed" in message
        }
        for number, text in failed.items():
            self.over = True
            msg = f"train: the run ended, because process {number} ended with {text}. {self._resume}"
            raise FuncconvError(msg)

    def _exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the message of each process, in order of their numbers."""
        data = json.dumps(message).encode()
        return [json.loads(row.tobytes().rstrip(b"\0")) for row in self._all(data, _MESSAGE_BYTES)]

    def _exchange_texts(self, text: str) -> list[str]:
        """Return the text of each process, of any length."""
        data = text.encode()
        sizes = [row["size"] for row in self._exchange({"size": len(data)})]
        return [row.tobytes().rstrip(b"\0").decode() for row in self._all(data, max(sizes))]

    def _all(self, data: bytes, size: int) -> np.ndarray:
        row = np.frombuffer(data.ljust(size, b"\0"), np.uint8)[None]
        shape = (len(self._numbers), size)
        rows = jax.make_array_from_process_local_data(self._rows, row, shape)  # type: ignore[no-untyped-call]
        return np.asarray(self._gather(rows))


def of_state(tree: Any) -> Processes:
    """Return the processes on whose devices the arrays of a tree lie."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return Processes({device for leaf in arrays for device in leaf.sharding.device_set})


def digests(tree: Any, name: str = "") -> dict[str, str]:
    """Return a text with a digest for each array of a tree; of a spread array, for each part that is here."""
    texts = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        path_name = jax.tree_util.keystr(path, simple=True, separator="/")
        path_name = f"{name}/{path_name}" if name and path_name else name or path_name
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        texts[path_name] = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            texts[path_name] += f" sha256:{_digest(leaf)}"
            continue
        for part in leaf.addressable_shards:
            index = ", ".join(f"{axis.start or 0}:{axis.stop or ''}" for axis in part.index)
            texts[f"{path_name}[{index}]"] = f"sha256:{_digest(part.data)}"
    return texts


def _digest(array: Any) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def _differences(texts: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Return a line for each name whose values differ between processes."""
    differences = []
    for name in dict.fromkeys(name for text in texts.values() for name in text):
        values = {number: text.get(name) for number, text in texts.items()}
        if name.endswith("]"):
            values = {number: value for number, value in values.items() if value is not None}
        if len(set(values.values())) < 2:
            continue
        shown = {number: "nothing" if value is None else value for number, value in values.items()}
        lines = [value.split(" sha256:")[0] for value in shown.values()]
        if "\n" in "".join(lines):
            lines = _first_difference(lines)
        if len(set(lines)) == 1 or any(line.startswith("sha256:") for line in lines):
            differences.append(
                f"{name} has other values in process {' than in process '.join(map(str, _first_that_differ(values)))}"
            )
        else:
            one, other = _first_that_differ(values)
            by_number = dict(zip(shown, lines, strict=True))
            differences.append(f"{name}: {by_number[one]} in process {one}, {by_number[other]} in process {other}")
    return differences


def _first_that_differ(values: Mapping[int, Any]) -> tuple[int, int]:
    """Return the first process and the first that differs from it."""
    first = next(iter(values))
    return first, next(number for number in values if values[number] != values[first])


def _first_difference(texts: list[str]) -> list[str]:
    """Return the first line in which texts of many lines differ."""
    for lines in zip(*(text.splitlines() for text in texts), strict=False):
        if len(set(lines)) > 1:
            return [line.strip()[:200] for line in lines]
    return [f"{len(text.splitlines())} lines" for text in texts]
