"""Run all benchmarks, or those that are named, and print one table. Exits with 1 when a measurement misses its target."""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

from rich.console import Console
from rich.table import Table

import tests.benchmarks as package
from tests.benchmarks import Measurement


def collect(names: list[str]) -> list[Measurement]:
    """Measurements of the named modules of the folder, else of every one that defines ``measure()``, in their order."""
    measurements: list[Measurement] = []
    for name in names or sorted(module.name for module in iter_modules(package.__path__) if module.name != "__main__"):
        module = import_module(f"{package.__name__}.{name}")
        if hasattr(module, "measure"):
            measurements.extend(module.measure())
    return measurements


def as_table(measurements: list[Measurement]) -> Table:
    table = Table(title="Rows per second")
    table.add_column("name", overflow="fold")
    for column in ("n", "baseline", "ours", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for item in measurements:
        ratio = "" if item.ratio is None else f"{item.ratio:.1f}x"
        target = "" if item.target is None else f"; target {item.target:g}x" + (", MISSED" if item.missed else "")
        baseline = "" if item.baseline is None else f"{item.baseline:,.0f}"
        table.add_row(item.name, f"{item.rows:,}", baseline, f"{item.ours:,.0f}", ratio, item.note + target)
    return table


def main() -> int:
    measurements = collect(sys.argv[1:])
    Console().print(as_table(measurements))
    return int(any(item.missed for item in measurements))


if __name__ == "__main__":
    sys.exit(main())
