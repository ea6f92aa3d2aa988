"""Read the result files, and put those of one device and several versions of JAX side by side."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Values: TypeAlias = tuple[float | None, ...]  # one for each version of JAX; None where it was not measured
Merged: TypeAlias = dict[str, dict[str, Values]]  # a row for what was measured, a column for each figure

MEAN = "geometric mean"  # the name of the last row of most tables
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Result:
    """One file of one suite: `{suite}-{place}-jax{version}.json`."""

    suite: str
    place: str  # the platform, and the options if there are any: "cpu", "cpu-avx2"
    content: dict[str, Any]

    @property
    def jax(self) -> str:
        """Return the version of JAX."""
        return str(self.content.get("jax", "unknown"))

    @property
    def tables(self) -> dict[str, Any]:
        """Return the tables by their titles."""
        return self.content["tables"]


@dataclass(frozen=True)
class Place:
    """All results of one platform with one set of options."""

    name: str
    results: tuple[Result, ...]

    @property
    def versions(self) -> list[str]:
        """Return the versions of JAX, from the oldest to the newest."""
        return sorted({result.jax for result in self.results}, key=version_number)

    @property
    def heading(self) -> str:
        """Return the name of the device, and the options after it."""
        platform, _, options = self.name.partition("-")
        device = next(
            (str(result.content["device"]) for result in self.results if "device" in result.content), platform
        )
        return (device.upper() if device == platform else device) + (f" ({options})" if options else "")

    def of_suite(self, suite: str) -> dict[str, Result]:
        """Return the results of a suite by the version of JAX, from the oldest to the newest."""
        found = {result.jax: result for result in self.results if result.suite == suite}
        return {version: found[version] for version in self.versions if version in found}

    def titles(self, suite: str) -> list[str]:
        """Return the titles of the tables of a suite."""
        return list(dict.fromkeys(title for result in self.of_suite(suite).values() for title in result.tables))

    def table(self, suite: str, title: str, named: Callable[[str], str] = str) -> Merged:
        """Return a table with the figures of all versions; `named` returns the name of a row that they share."""
        found = self.of_suite(suite)
        tables = [found[version].tables.get(title, {}) if version in found else {} for version in self.versions]
        tables = [{named(row): figures for row, figures in table.items()} for table in tables]
        rows = dict.fromkeys(row for table in tables for row in table)
        merged: Merged = {}
        for row in rows:
            columns = dict.fromkeys(column for table in tables for column in table.get(row, {}))
            merged[row] = {column: tuple(table.get(row, {}).get(column) for table in tables) for column in columns}
        return merged


def load(folder: Path) -> tuple[list[Place], list[dict[str, Any]]]:
    """Return the results of the suites by place, CPUs first, and the records of `python -m benchmarks --gpu`."""
    results: list[Result] = []
    records: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*-jax*.json")):
        content = json.loads(path.read_text())
        if "parts" in content:
            records.append(content)
        elif "tables" in content:
            suite, _, place = path.stem.partition("-jax")[0].partition("-")
            results.append(Result(suite, place, content))
    names = sorted({result.place for result in results}, key=lambda name: (not name.startswith("cpu"), name))
    places = [Place(name, tuple(result for result in results if result.place == name)) for name in names]
    return places, sorted(records, key=lambda record: (str(record.get("device")), version_number(str(record["jax"]))))


def version_number(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for sorting."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def facts(contents: Iterable[dict[str, Any]], name: str) -> str:
    """Return what several files of one run of the suites say about the device under one name."""
    contents = list(contents)
    found = [_text(content[name]) for content in contents if name in content]
    if not found:
        return NOT_RECORDED
    if name == "date":
        text = min(found) if len(set(found)) == 1 else f"{min(found)} to {max(found)}"
    else:
        text = "; ".join(dict.fromkeys(found))
    missing = len(contents) - len(found)
    return f"{text}; {NOT_RECORDED} in {missing} of {len(contents)} files" if missing else text


def _text(value: Any) -> str:
    return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"
