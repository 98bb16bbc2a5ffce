"""``reviewclf store``: keeping house in the store."""

from __future__ import annotations

import typer

from reviewclf.settings import load_settings

app = typer.Typer(help="The store: what it holds, and keeping house in it.", no_args_is_help=True)


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
