"""The command `funcconv run`: start a script with settings that make JAX faster on the CPU.

A process reads these settings when it starts, so a running script cannot make them. The command adds them to the
environment and replaces itself with the script.
"""

import argparse
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ._common.device import cores
from ._common.errors import FuncconvError
from ._common.files import existing_file

DESCRIPTION = "Run a script with settings that make JAX faster on the CPU: training steps take 0.6 to 1.0 of the time."
_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES, _MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENAS = (
    f"glibc.malloc.{name}" for name in ("hugetlb", "mmap_threshold", "trim_threshold", "arena_max")
)
_HAS_HUGE_PAGES = (2, 35)  # versions of glibc
_HAS_TUNABLES = (2, 26)
_OLD_NAMES = {  # variables that set the same
    _MMAP_THRESHOLD: "MALLOC_MMAP_THRESHOLD_",
    _TRIM_THRESHOLD: "MALLOC_TRIM_THRESHOLD_",
    _ARENAS: "MALLOC_ARENA_MAX",
}
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")  # parts of the names of libraries that replace glibc's
_FILE_OF_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Machine(NamedTuple):
    """The properties of a machine that decide which settings help."""

    system: str  # as in `sys.platform`
    glibc: tuple[int, ...] | None  # version; None if the C library is another one, such as musl
    huge_pages: str | None  # the mode of Linux: "always", "madvise" or "never"; None if it has no huge pages
    cores: int  # that this process may use
    quota: float | None  # the time that this process may use, in cores; None if there is no limit

    @classmethod
    def current(cls) -> "Machine":
        """Return the properties of the machine that runs this process."""
        modes = _text(_FILE_OF_HUGE_PAGES)  # for example: always [madvise] never
        mode = modes.partition("[")[2].partition("]")[0] or None
        return cls(sys.platform, _glibc(), mode, cores(), _quota(_CGROUPS, _text(_OWN_CGROUP)))


class Setting(NamedTuple):
    """A setting that helps on a machine, or the reason why it is left out."""

    name: str  # --no-NAME leaves it out
    variable: str  # of the environment
    value: str | None  # None if it is left out
    reason: str

    def __str__(self) -> str:
        """Return the line that the command prints."""
        done = "not set" if self.value is None else f"{self.variable}={self.value}"
        return f"{self.name.replace('-', ' ')}: {done} ({self.reason})"


def settings(machine: Machine, environment: Mapping[str, str], without: Sequence[str] = ()) -> list[Setting]:
    """Return all settings, with those that help on this machine and that the user has not made.

    Args:
        machine: the machine.
        environment: the environment of the user, who may have made settings.
        without: names of settings that the user wants to leave out.

    Returns:
        All settings in the order of their options.
    """
    found = []
    for name, (variable, decide) in _SETTINGS.items():
        platforms = environment.get("JAX_PLATFORMS", "")
        if name in without:
            value, reason = None, f"--no-{name}"
        elif platforms and platforms.split(",")[0].strip().lower() != "cpu":
            value, reason = None, f"JAX_PLATFORMS is {platforms}, and this helps on the CPU only"
        else:
            value, reason = decide(machine, environment)
        found.append(Setting(name, variable, value, reason))
    return found


def extended(environment: Mapping[str, str], made: Sequence[Setting]) -> dict[str, str]:
    """Return the environment with the settings. What a variable has already stays in front of what is added."""
    result = dict(environment)
    for setting in made:
        if setting.value is not None:
            old = result.get(setting.variable)
            result[setting.variable] = f"{old}:{setting.value}" if old else setting.value
    return result


def _huge_pages(machine: Machine, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Decide on pages of 2 MB for what the allocator requests."""
    obstacle = _obstacle(machine, environment, (_HUGE_PAGES,), _HAS_HUGE_PAGES)
    if obstacle is None and machine.huge_pages != "madvise":
        obstacle = {
            None: "this Linux has no transparent huge pages",
            "always": "Linux gives huge pages to all programs",
            "never": f"{_FILE_OF_HUGE_PAGES} says never; the administrator can write madvise into it",
        }.get(machine.huge_pages, f"{_FILE_OF_HUGE_PAGES} says {machine.huge_pages}")
    if obstacle is not None:
        return None, obstacle
    return f"{_HUGE_PAGES}=1", "XLA requests its memory anew at each call, and large pages are faster to provide"


def _kept_memory(machine: Machine, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Decide on keeping memory that the program has freed."""
    # Only the first arena of glibc can hold large blocks, so all threads must use it, XLA's too.
    values = {_MMAP_THRESHOLD: 2**32, _TRIM_THRESHOLD: 2**34, _ARENAS: 1}
    obstacle = _obstacle(machine, environment, tuple(values), _HAS_TUNABLES)
    if obstacle is not None:
        return None, obstacle
    value = ":".join(f"{name}={number}" for name, number in values.items())
    return value, "freed memory stays with the process, for the next call"


def _threads(machine: Machine, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Decide on the number of XLA's threads, which is the number of cores unless something else is set."""
    if "NPROC" in environment:
        return None, f"you have set NPROC={environment['NPROC']}"
    if machine.quota is None or math.ceil(machine.quota) >= machine.cores:
        return None, f"XLA starts a thread for each of the {machine.cores} available cores, and no quota is smaller"
    return (
        str(max(1, math.ceil(machine.quota))),
        f"the quota of this container is {machine.quota:g} of {machine.cores} cores; more threads would be suspended",
    )


_SETTINGS = {
    "huge-pages": (_TUNABLES, _huge_pages),
    "kept-memory": (_TUNABLES, _kept_memory),
    "threads": ("NPROC", _threads),
}
_HELP = {
    "huge-pages": "do not request memory in pages of 2 MB",
    "kept-memory": "do not keep freed memory for the next call",
    "threads": "do not limit XLA's threads to the CPU quota of the container",
}


def _obstacle(
    machine: Machine, environment: Mapping[str, str], names: Sequence[str], version: tuple[int, int]
) -> str | None:
    """Return why tunables of glibc's allocator would have no effect or are the user's, or None."""
    if machine.system != "linux":
        return f"needs Linux; this system is {machine.system}"
    if machine.glibc is None:
        return "needs the C library glibc; this Python uses another one"
    if machine.glibc < version:
        return f"needs glibc {'.'.join(map(str, version))}; this one is {'.'.join(map(str, machine.glibc))}"
    preloaded = environment.get("LD_PRELOAD", "")
    if any(name in preloaded for name in _OTHER_ALLOCATORS):
        return f"LD_PRELOAD={preloaded} replaces the allocator of glibc"
    for given in environment.get(_TUNABLES, "").split(":"):
        if given.partition("=")[0] in names:
            return f"you have set {given} in {_TUNABLES}"
    for old_name in (_OLD_NAMES[name] for name in names if name in _OLD_NAMES):
        if old_name in environment:
            return f"you have set {old_name}={environment[old_name]}"
    return None


def _text(path: Path) -> str:
    """Return the text of a file, or an empty one if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _glibc() -> tuple[int, ...] | None:
    """Return the version of glibc that this process uses, or None if it uses another C library."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()  # for example: glibc 2.36
        return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else None
    except (AttributeError, OSError, ValueError):  # not on Windows; other C libraries do not know the name
        return None


def _quota(root: Path, own: str) -> float | None:
    """Return the smallest CPU quota of the control groups of this process, in cores, or None if there is none.

    Args:
        root: the folder where control groups are mounted.
        own: the text of `/proc/self/cgroup`. Inside a container its paths can be those of the host, so that the folders
            do not exist; the group of the container is then the root.
    """
    quotas = []
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = Path(path.strip("/"))
        for group in (folder, *folder.parents):
            quota, period = _limit(root / "cpu" / group) if controllers else _limit_v2(root / group)
            if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _limit(folder: Path) -> tuple[str, str]:
    """Return quota and period of a group of version 1, where a quota of -1 means none."""
    return _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()


def _limit_v2(folder: Path) -> tuple[str, str]:
    """Return quota and period of a group of version 2, where a quota of `max` means none."""
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    return quota, period


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `funcconv run` to its parser."""
    parser.usage = "funcconv run [options] (script.py | -m module) [arguments of the script]"
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as `python -m` does")
    parser.add_argument("script", help="the script, or the module; all arguments after it are passed to it")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and the command, and do not run it")
    parser.add_argument("--quiet", action="store_true", help="do not print the settings")
    for name, text in _HELP.items():
        parser.add_argument(f"--no-{name}", dest="without", action="append_const", const=name, default=[], help=text)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the command, and those of the script, which follow its name."""
    if arguments[:1] != ["run"]:
        return list(arguments), []
    options = 1
    while options < len(arguments) and arguments[options].startswith("-"):
        options += 1
    return list(arguments[: options + 1]), list(arguments[options + 1 :])


def run(options: argparse.Namespace) -> None:
    """Replace this process with the script, or print what would be done."""
    made = settings(Machine.current(), os.environ, options.without)
    target = ["-m", options.script] if options.module else [existing_file("run", options.script)]
    command = [sys.executable, *interpreter_options(sys.orig_argv, sys.argv), *target, *options.script_arguments]
    environment = extended(os.environ, made)
    if options.dry_run:
        changed = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
        print("\n".join([*map(str, made), shlex.join(["env", *changed, *command])]))
        return
    if not options.quiet:
        print("\n".join(f"funcconv: {setting}" for setting in made), file=sys.stderr)
    _replace(command, environment)


def interpreter_options(original: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the options of Python itself, such as `-X dev`, with which this command was started.

    Args:
        original: the whole command, as in `sys.orig_argv`.
        argv: what remains for the program, as in `sys.argv`.
    """
    options = list(original[1 : len(original) - len(argv[1:])])
    program = options.pop() if options else ""
    if program.startswith("-"):  # -mfuncconv
        return options
    last = options[-1] if options else ""
    if Path(argv[0]).name == "__main__.py" and last.startswith("-") and last.endswith("m"):  # -m, or -Im
        options[-1:] = [last[:-1]] if last != "-m" else []
    return options


def _replace(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Run a command instead of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # Windows cannot replace a process: os.execve would return to the shell at once
        sys.exit(subprocess.call(command, env=environment))
    try:
        os.execve(command[0], command, environment)
    except OSError as error:
        msg = f"run: cannot start {command[0]!r}: {error.strerror}"
        raise FuncconvError(msg) from error
