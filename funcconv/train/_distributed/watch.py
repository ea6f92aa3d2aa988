"""Find out which process is gone, in the processes that train together and in a helper that outlives its process.

JAX's coordination service aborts a process from C++ when another one is gone, before Python can say why. So each
process starts this file as a small helper, which imports only the standard library. The helper writes to the standard
error if its process ends without a message.
"""

import json
import socket
import sys
from collections.abc import Mapping
from typing import Any

Addresses = Mapping[int, Mapping[str, Any]]  # of each process: "host", "port" and "pid"
_ANSWER_SECONDS = 5  # how long another host may take to answer


def missing(addresses: Addresses, own_number: int, *, silent: bool = True) -> list[int]:
    """Return the numbers of the other processes that no longer listen.

    The system closes the port of a process when it ends, however it ends. If none is closed and `silent` is true,
    return those that cannot be reached: their machine is down, or a firewall is between.
    """
    closed, unreachable = [], []
    for number, address in addresses.items():
        host = "127.0.0.1" if address["host"] == socket.gethostname() else address["host"]
        if number != own_number:
            try:
                socket.create_connection((host, address["port"]), timeout=_ANSWER_SECONDS).close()
            except ConnectionError:
                closed.append(number)  # its port is closed
            except OSError:
                unreachable.append(number)  # no answer
    return closed or (unreachable if silent else [])


def describe(gone: list[int], addresses: Addresses, resume: str) -> str:
    """Return which processes are gone and how to resume."""
    processes = ", ".join(f"process {i} (pid {addresses[i]['pid']} on {addresses[i]['host']})" for i in gone)
    return f"{processes} {'are' if len(gone) > 1 else 'is'} gone. {resume}"


def main() -> None:
    """Wait for the end of the process. It writes the addresses to standard input, and "done" before it ends."""
    message = json.loads(sys.stdin.readline())
    if sys.stdin.readline() == "done\n":
        return
    addresses = {int(number): address for number, address in message["addresses"].items()}
    gone = missing(addresses, message["own"])
    why = describe(gone, addresses, message["resume"]) if gone else f"The others still run. {message['resume']}"
    print(f"train: process {message['own']} was ended by a signal or by JAX. {why}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
