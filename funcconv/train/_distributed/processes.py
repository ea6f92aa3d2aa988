"""Several processes that train one model: they start alike, stop at one step, and say which of them is gone."""

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

_BYTES, _TEXT = 1024, 150  # of a message; the letters of its text, which JSON may write as 6 bytes each
_PATIENCE = 5.0  # seconds in which the port of a process that ends is closed, once a connection to it broke
_BROKEN = ("gloo", "nccl", "connection", "unavailable", "socket", "heartbeat", "coordination")


class Processes:
    """The processes whose devices share arrays. Where that is one process alone, nothing is exchanged.

    Every method but `close` is called by all of them at the same point of the run, since each of those waits for the
    others. Messages have one form, so that a process that fails at any point can tell the others, wherever they wait.

    Args:
        devices: on which the shared arrays lie.
    """

    def __init__(self, devices: Iterable[jax.Device]) -> None:
        first: dict[int, jax.Device] = {}
        for device in sorted(devices, key=lambda each: each.id):
            first.setdefault(device.process_index, device)
        self._numbers, self._own = sorted(first), jax.process_index()
        self.together = len(first) > 1 and self._own in first
        self.is_first = self._own == min(self._numbers, default=self._own)
        self.over = False  # a process failed, and all know of it, or messages no longer arrive
        self.broken = False  # messages no longer arrive
        self._resume = "Start all processes again with the same arguments."
        self._listener: socket.socket | None = None
        self._helper: subprocess.Popen[str] | None = None
        self._addresses: dict[int, dict[str, Any]] = {}
        if self.together:
            mesh = Mesh(np.array([first[number] for number in self._numbers]), ("process",))
            self._rows = NamedSharding(mesh, PartitionSpec("process"))  # type: ignore[no-untyped-call]
            whole = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
            self._gather = jax.jit(lambda x: x, out_shardings=whole)

    def meet(self, folder: str | None) -> None:
        """Make the processes known to each other, so that one that is gone can be named.

        Args:
            folder: of checkpoints, or None; it is named in the text on how to resume.
        """
        if not self.together:
            return
        place = f"go on from the last whole checkpoint in {folder}" if folder else "begin anew, without checkpoint="
        self._resume = f"To resume, start all processes again with the same arguments. They {place}."
        atexit.register(self.close)
        self._listener = socket.create_server(("", 0))
        address = {"host": socket.gethostname(), "port": self._listener.getsockname()[1], "pid": os.getpid()}
        rows = self._exchange(address)
        self._stop_if_failed(rows)
        self._addresses = dict(zip(self._numbers, rows, strict=True))
        if sys.executable:
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", _watch.__file__], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            told = {"own": self._own, "addresses": self._addresses, "resume": self._resume}
            self._tell(json.dumps(told))

    def check(self, said: Mapping[str, str]) -> None:
        """Refuse to go on if the processes do not say the same.

        Args:
            said: texts by their names. A name that ends with an index, `"params/w[0:2]"`, need not be known to all.

        Raises:
            FuncconvError: with each difference, in every process.
        """
        if not self.together:
            return
        text = json.dumps(dict(said), sort_keys=True)
        rows = self._exchange({"digest": hashlib.sha256(text.encode()).hexdigest()})
        self._stop_if_failed(rows)
        if len({row.get("digest") for row in rows}) > 1:
            texts = [json.loads(each) for each in self._exchange_texts(text)]
            differences = _differences(dict(zip(self._numbers, texts, strict=True)))
            if differences:
                self.over = True
                msg = (
                    "train: the processes are to train one model, but differ:\n  " + "\n  ".join(differences[:20])
                    + "\nGive all processes the same seeds, arguments and versions."
                )  # fmt: skip
                raise FuncconvError(msg)

    def agree(self, reason: str = "") -> str:
        """Return why the run stops, if any of the processes has a reason; empty if none has."""
        if not self.together or self.over:
            return reason
        rows = self._exchange({"stop": reason[:_TEXT]})
        self._stop_if_failed(rows)
        reasons: dict[int, str] = {
            number: row["stop"] for number, row in zip(self._numbers, rows, strict=True) if row.get("stop")
        }
        if not reasons:
            return ""
        first, *others = dict.fromkeys(reasons.values())
        if others or len(reasons) < len(self._numbers):
            return f"{first} (process {', '.join(map(str, reasons))} of {len(self._numbers)})"
        return first

    def everywhere(self, condition: bool) -> bool:  # noqa: FBT001
        """Whether a condition holds in every process; not so if they cannot be asked."""
        if not self.together:
            return condition
        return not self.broken and all(row.get("holds") for row in self._exchange({"holds": condition}))

    def fail(self, error: BaseException) -> FuncconvError | None:
        """Tell the others of an error; return another error if it came because one of them is gone."""
        if not self.together or self.over:
            return None
        self.over = True
        words = f"{type(error).__name__}: {error}"
        lost = any(word in words.lower() for word in _BROKEN)
        gone = self._missing(silent=False) if lost else []
        if not gone:
            try:
                self._exchange({"failed": words[:_TEXT]})
            except Exception:
                self.broken = True
                gone = self._missing(silent=True)
        if not gone:
            return None
        self.broken = True
        return FuncconvError(f"train: {_watch.describe(gone, self._addresses, self._resume)}")

    def _missing(self, *, silent: bool) -> list[int]:
        """Return the processes that are gone; a connection to one can break shortly before its port is closed."""
        end = time.monotonic() + _PATIENCE
        while not (gone := _watch.missing(self._addresses, self._own, silent=silent)) and time.monotonic() < end:
            time.sleep(0.1)
        return gone

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Tell the others of an error that leaves a block."""
        try:
            yield
        except BaseException as error:
            other = self.fail(error)
            self.close()
            if other:
                raise other from error
            raise

    def close(self) -> None:
        """Let go of what `meet` took, and tell the helper that this process ends as it should."""
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

    def _stop_if_failed(self, rows: list[dict[str, Any]]) -> None:
        failed = {number: row["failed"] for number, row in zip(self._numbers, rows, strict=True) if "failed" in row}
        for number, words in failed.items():
            self.over = True
            msg = f"train: the run ended, because process {number} ended with {words}. {self._resume}"
            raise FuncconvError(msg)

    def _exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the message of each process, in order of their numbers."""
        data = json.dumps(message).encode()
        return [json.loads(row.tobytes().rstrip(b"\0")) for row in self._all(data, _BYTES)]

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
    """Return texts that differ where the arrays of a tree do, by their paths; of an array in parts, those held here."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        where = f"{name}/{where}" if name and where else name or where
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[where] = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            found[where] += f" sha256:{_digest(leaf)}"
            continue
        for part in leaf.addressable_shards:
            index = ", ".join(f"{axis.start or 0}:{axis.stop or ''}" for axis in part.index)
            found[f"{where}[{index}]"] = f"sha256:{_digest(part.data)}"
    return found


def _digest(array: Any) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def _differences(texts: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Return a line for each name under which processes say different things."""
    found = []
    for name in dict.fromkeys(name for text in texts.values() for name in text):
        said = {number: text.get(name) for number, text in texts.items()}
        if name.endswith("]"):
            said = {number: value for number, value in said.items() if value is not None}
        if len(set(said.values())) < 2:
            continue
        shown = {number: "nothing" if value is None else value for number, value in said.items()}
        lines = [value.split(" sha256:")[0] for value in shown.values()]
        if "\n" in "".join(lines):
            lines = _first_difference(lines)
        if len(set(lines)) == 1 or any(line.startswith("sha256:") for line in lines):
            found.append(f"{name} has other values in process {' than in process '.join(map(str, _two(said)))}")
        else:
            one, other = _two(said)
            by_number = dict(zip(shown, lines, strict=True))
            found.append(f"{name}: {by_number[one]} in process {one}, {by_number[other]} in process {other}")
    return found


def _two(said: Mapping[int, Any]) -> tuple[int, int]:
    """Return the first process and the first that differs from it."""
    first = next(iter(said))
    return first, next(number for number in said if said[number] != said[first])


def _first_difference(texts: list[str]) -> list[str]:
    """Return, of texts of many lines, the first line in which they differ."""
    for lines in zip(*(text.splitlines() for text in texts), strict=False):
        if len(set(lines)) > 1:
            return [line.strip()[:200] for line in lines]
    return [f"{len(text.splitlines())} lines" for text in texts]
