"""``reviewclf store``: what the store holds, and keeping house in it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reviewclf.settings import load_settings

if TYPE_CHECKING:
    from reviewclf.manifest import Manifest
    from reviewclf.store.inventory import Inventory

app = typer.Typer(help="The store: what it holds, and keeping house in it.", no_args_is_help=True)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Say what takes how much: tables, outputs of stages, training sets, journals, manifests."""
    from reviewclf.store import Store
    from reviewclf.store.inventory import take_inventory

    found = take_inventory(Store(load_settings().store_uri))
    if as_json:
        typer.echo(json.dumps({**found.model_dump(), "bytes": found.bytes}, ensure_ascii=False, indent=2))
    else:
        _show(found)


@app.command()
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only say what would be done.")] = False,
) -> None:
    """Put small parts of tables together, and remove what is older than REVIEWCLF_MAINTENANCE__* keep."""
    from reviewclf.stages.maintain import maintain as keep_house

    done = keep_house(load_settings(), dry_run=dry_run)
    details: dict[str, dict[str, int]] = done.details  # type: ignore[assignment]
    would = "would be " if dry_run else ""
    for name, fewer in details["compacted"].items():
        typer.echo(f"{name}: {fewer} parts {would}put together with others")
    for what, files in details["files"].items():
        typer.echo(f"{what}: {files} {would}removed, {_size(details['bytes'][what])}")
    if details["checkpoints"]:
        typer.echo(f"checkpoints of trainings: {details['checkpoints']} {would}removed")
    if not any(done.counts.values()):
        typer.echo("nothing is to be done")


@app.command()
def migrate() -> None:
    """Take over a store of an earlier version, once; end everything else that writes to it before.

    May be killed and run again. What was there stays until `reviewclf store maintain` removes it.
    """
    from reviewclf.store import Store
    from reviewclf.store.migration import migrate as take_over

    store = Store(load_settings().store_uri)
    version, rows = take_over(store)
    for name, count in rows.items():
        typer.echo(f"{name:<20} {count:>12,} rows")
    typer.echo(f"{store.uri}: version {version} is taken over" if version else f"{store.uri}: nothing is left to be taken over")


def show_erasure(done: Manifest) -> None:
    """Say what was erased, and what is left for people to do."""
    details: dict[str, Any] = done.details
    counts = done.counts
    would = "would be " if details["dry_run"] else ""
    typer.echo(f"{counts['reviews']} reviews found, {counts['rows']} rows {would}erased")
    for name, rows in details["rows"].items():
        typer.echo(f"  {name}: {rows}")
    if not details["dry_run"]:
        typer.echo(
            f"{counts['outputs']} files with outputs of stages and {counts['lines']} lines of journals held something of them"
        )
    told = {
        "not found": details["unknown"],
        "trained on, so train anew": [f"dataset {digest}" for digest in details["datasets"]],
        "models trained on these": [f"version {version}" for version in details["versions"]],
        "their training sets are not in the store any more, so nobody knows": [
            f"version {version}" for version in details["unclear"]
        ],
    }
    for what, names in told.items():
        if names:
            typer.echo(f"{what}: {', '.join(names)}")
    if counts["shared"]:
        typer.echo(f"{counts['shared']} of the texts were written by others too and stay as theirs")
    if details["in_gold"]:
        typer.echo(f"{details['in_gold']} of the texts are in gold: take them out of REVIEWCLF_GOLD and run this again")


def _show(found: Inventory) -> None:
    from rich.console import Console
    from rich.table import Table

    tables = Table("table", title=f"{found.uri}, snapshot {found.snapshot}, {_size(found.bytes)}")
    for column in ("version", "rows", "parts", "size", "older versions", "log"):
        tables.add_column(column, justify="right")
    for name, table in found.tables.items():
        sizes = (_size(size) for size in (table.bytes, table.older_bytes, table.log_bytes))
        tables.add_row(name, str(table.version), f"{table.rows:,}", f"{table.parts:,}", *sizes)
    others = Table("what else")
    others.add_column("files", justify="right")
    others.add_column("size", justify="right")
    for name, usage in found.others.items():
        others.add_row(name, f"{usage.files:,}", _size(usage.bytes))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables)
    console.print(others)


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
