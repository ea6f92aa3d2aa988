"""The command `funcconv run`: what it sets, and that the script runs as with `python script.py`."""

import json
import os
import signal
import subprocess
import sys

import pytest

import funcconv as fc
from funcconv import _launch
from funcconv._command_line import main
from funcconv._launch import Machine, extended, interpreter_options, settings

LINUX = Machine("linux", (2, 36), "madvise", 8, None)
HUGE = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1"
NAMES = ["huge-pages", "kept-memory", "threads"]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "JAX_PLATFORMS", "NPROC")}
SCRIPT = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "path": sys.path[0], "name": __name__, "executable": sys.executable,
                  "environment": dict(os.environ), "pid": os.getpid(), "optimize": sys.flags.optimize,
                  "dev": sys.flags.dev_mode, "input": sys.stdin.read()}))
sys.exit(7)
"""


def values(machine, environment=None, without=()):
    """Return what is set, and the reasons of what is not."""
    made = settings(machine, environment or {}, without)
    assert [setting.name for setting in made] == NAMES
    return {setting.name: setting.value for setting in made}, {
        setting.name: setting.reason for setting in made if setting.value is None
    }


@pytest.fixture
def started(tmp_path):
    """Start `funcconv run` in a process, with a script that prints what it sees."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(*arguments, python=(), environment=None, **options):
        command = [sys.executable, *python, "-m", "funcconv", "run", *map(str, arguments)]
        environment = CLEAN | (environment or {})
        return subprocess.Popen(
            command,
            env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def test_on_linux_with_glibc_memory_is_set():
    found, reasons = values(LINUX)
    assert found == {"huge-pages": HUGE, "kept-memory": KEPT, "threads": None}
    assert "8 available cores" in reasons["threads"]


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_can_be_left_out(name):
    machine = LINUX._replace(quota=2.0)
    every, _ = values(machine)
    found, reasons = values(machine, without=[name])
    assert None not in every.values()
    assert found == every | {name: None}
    assert reasons == {name: f"--no-{name}"}


@pytest.mark.parametrize(
    ("changes", "environment", "huge", "kept"),
    [
        ({"system": "darwin", "glibc": None}, {}, "needs Linux; this system is darwin", "needs Linux"),
        ({"glibc": None}, {}, "needs the C library glibc", "needs the C library glibc"),
        ({"glibc": (2, 34)}, {}, "needs glibc 2.35; this one is 2.34", None),
        ({"glibc": (2, 25)}, {}, "needs glibc 2.35", "needs glibc 2.26; this one is 2.25"),
        ({"huge_pages": "never"}, {}, "says never", None),
        ({"huge_pages": "always"}, {}, "to all programs", None),
        ({"huge_pages": None}, {}, "no transparent huge pages", None),
        ({}, {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, "replaces the allocator", "replaces the allocator"),
        ({}, {"LD_PRELOAD": "/usr/lib/libother.so"}, None, None),
        ({}, {"JAX_PLATFORMS": "cuda,cpu"}, "JAX_PLATFORMS is cuda,cpu", "JAX_PLATFORMS is cuda,cpu"),
        ({}, {"JAX_PLATFORMS": "cpu"}, None, None),
        ({}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}, "you have set glibc.malloc.hugetlb=2", None),
        ({}, {"GLIBC_TUNABLES": "a.b=1:glibc.malloc.arena_max=4"}, None, "you have set glibc.malloc.arena_max=4"),
        ({}, {"MALLOC_TRIM_THRESHOLD_": "1"}, None, "you have set MALLOC_TRIM_THRESHOLD_=1"),
        ({}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlbx=1"}, None, None),
    ],
)
def test_what_would_not_help_is_left_out(changes, environment, huge, kept):
    found, reasons = values(LINUX._replace(**changes), environment)
    for name, reason, value in (("huge-pages", huge, HUGE), ("kept-memory", kept, KEPT)):
        assert found[name] == (value if reason is None else None)
        if reason is not None:
            assert reason in reasons[name]


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, None), (8.0, None), (7.5, None), (7.0, "7"), (2.5, "3"), (0.5, "1"), (20.0, None)]
)
def test_a_quota_limits_the_threads(quota, threads):
    found, _ = values(LINUX._replace(quota=quota))
    assert found["threads"] == threads
    assert values(LINUX._replace(quota=quota), {"NPROC": "5"})[1]["threads"] == "you have set NPROC=5"


def test_settings_of_the_user_stay():
    given = {"GLIBC_TUNABLES": "glibc.malloc.top_pad=4096:glibc.malloc.hugetlb=0", "OTHER": "1"}
    result = extended(given, settings(LINUX, given))
    assert result == {"GLIBC_TUNABLES": f"{given['GLIBC_TUNABLES']}:{KEPT}", "OTHER": "1"}
    assert extended({}, settings(LINUX, {})) == {"GLIBC_TUNABLES": f"{HUGE}:{KEPT}"}
    assert extended({"GLIBC_TUNABLES": ""}, settings(LINUX, {})) == {"GLIBC_TUNABLES": f"{HUGE}:{KEPT}"}
    assert extended(result, settings(LINUX, result)) == result


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/of/the/host", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:memory:/m\n2:cpu,cpuacct:/g",
            {"cpu/g/cpu.cfs_quota_us": "400000", "cpu/g/cpu.cfs_period_us": "100000"},
            4.0,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/", {"cpu.max": "100000 100000"}, None),
        ("", {}, None),
        ("damaged", {"cpu.max": "\x00"}, None),
    ],
)
def test_the_quota_is_the_smallest_of_all_groups(tmp_path, own, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert _launch._quota(tmp_path, own) == quota


def test_this_machine_is_described(tmp_path, monkeypatch):
    machine = Machine.current()
    assert machine.system == sys.platform
    assert machine.cores >= 1
    for text, mode in (("always [madvise] never\n", "madvise"), ("always madvise [never]\n", "never"), ("", None)):
        (tmp_path / "enabled").write_text(text)
        monkeypatch.setattr(_launch, "_FILE_OF_HUGE_PAGES", tmp_path / "enabled")
        assert Machine.current().huge_pages == mode


@pytest.mark.parametrize(("answer", "version"), [("glibc 2.36", (2, 36)), ("glibc 2.36.9", (2, 36)), ("", None)])
def test_the_c_library(monkeypatch, answer, version):
    monkeypatch.setattr(os, "confstr", lambda _: answer, raising=False)
    assert _launch._glibc() == version


def test_another_c_library_does_not_know_the_name(monkeypatch):
    def confstr(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    assert _launch._glibc() is None


@pytest.mark.parametrize(
    ("original", "argv", "options"),
    [
        (["python", "-m", "funcconv", "run", "s.py"], ["/f/__main__.py", "run", "s.py"], []),
        (["python", "-mfuncconv", "run", "s.py"], ["/f/__main__.py", "run", "s.py"], []),
        (["python", "-Im", "funcconv", "run", "s.py"], ["/f/__main__.py", "run", "s.py"], ["-I"]),
        (["python", "-X", "dev", "-O", "-m", "funcconv", "run"], ["/f/__main__.py", "run"], ["-X", "dev", "-O"]),
        (["python", "-Werror", "/bin/funcconv", "run", "-m", "x"], ["/bin/funcconv", "run", "-m", "x"], ["-Werror"]),
        (["/bin/funcconv"], ["/bin/funcconv"], []),
    ],
)
def test_options_of_python_are_kept(original, argv, options):
    assert interpreter_options(original, argv) == options


def test_the_script_runs_as_without_the_command(started, tmp_path):
    process = started("script.py", "--lr", "3", "--quiet", "--", "-x", python=("-X", "dev", "-O"))
    out, err = process.communicate("from outside")
    seen = json.loads(out)
    assert process.returncode == 7
    assert seen["pid"] == process.pid  # the process is replaced
    assert seen["argv"] == ["script.py", "--lr", "3", "--quiet", "--", "-x"]
    assert (seen["path"], seen["name"], seen["input"]) == (str(tmp_path), "__main__", "from outside")
    assert (seen["executable"], seen["optimize"], seen["dev"]) == (sys.executable, 1, True)
    lines = [line for line in err.splitlines() if line.startswith("funcconv: ")]
    expected = settings(Machine.current(), CLEAN)
    assert lines == [f"funcconv: {setting}" for setting in expected]
    assert seen["environment"].get("GLIBC_TUNABLES") == extended({}, expected).get("GLIBC_TUNABLES")


def test_a_module_runs_too(started, tmp_path):
    out, err = started("--quiet", "-m", "script", "-m", "--no-threads").communicate("")
    seen = json.loads(out)
    assert not err
    assert seen["argv"] == [str(tmp_path / "script.py"), "-m", "--no-threads"]
    assert (seen["path"], seen["name"]) == (str(tmp_path), "__main__")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_signals_reach_the_script(started, tmp_path):
    (tmp_path / "waits.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(600)\n")
    process = started("--quiet", "waits.py")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_a_dry_run_prints_a_command_that_does_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Machine, "current", staticmethod(lambda: LINUX))
    for name in ("GLIBC_TUNABLES", "JAX_PLATFORMS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a b.py").write_text("raise SystemExit(3)")
    path = tmp_path / "a b.py"
    assert main(["run", "--dry-run", "--no-kept-memory", str(path), "--x"]) == 0
    *lines, command = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["huge pages", "kept memory", "threads"]
    assert lines[0].startswith(f"huge pages: GLIBC_TUNABLES={HUGE} (")
    assert lines[1] == "kept memory: not set (--no-kept-memory)"
    assert command.startswith(f"env GLIBC_TUNABLES={HUGE} {sys.executable} ")
    assert command.endswith(f"'{path}' --x")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: script"),
        (["-m"], "required: script"),
        (["--quiet"], "required: script"),
        (["nowhere.py"], "nowhere.py cannot be read"),
        (["."], "folder"),
        (["--no-such-option", "script.py"], "--no-such-option"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("")
    monkeypatch.setattr(_launch, "_replace", lambda *_: pytest.fail("started"))
    try:
        status = main(["run", *arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_python_that_cannot_start_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(fc.FuncconvError, match="cannot start"):
        _launch._replace([sys.executable], {})
