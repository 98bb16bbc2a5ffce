"""The `reviewclf` command. Heavy packages are imported inside the commands, so that help and errors come at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reviewclf import __version__
from reviewclf.errors import ReviewclfError
from reviewclf.settings import load_settings

if TYPE_CHECKING:
    from reviewclf.registry.tracking import Tracker

app = typer.Typer(
    help="Keeps a classifier of Russian marketplace reviews fresh.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"reviewclf {__version__}")
        raise typer.Exit


@app.command()
def up(
    once: Annotated[bool, typer.Option("--once", help="Stop everything after the leaderboard.")] = False,
) -> None:
    """Start Airflow and MLflow here, drive the DAGs to a champion, print the leaderboard, keep serving both UIs."""
    from reviewclf.local import up as start

    raise typer.Exit(start(load_settings(), once=once, report=_report))


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="IN", help="CSV, TSV, JSON Lines or Parquet file with reviews.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="File to write; its ending says which kind.")],
    text_column: Annotated[str, typer.Option(help="Column that holds the reviews.")] = "text",
) -> None:
    """Label the reviews of a file with the champion: its columns, and predicted_label, confidence, model_version."""
    from reviewclf.data.frames import read_frame, write_frame
    from reviewclf.registry.model import load_alias
    from reviewclf.serving.batch import predict_frame

    frame = read_frame(source, setting="IN")
    model = load_alias(_tracker())
    write_frame(predict_frame(frame, model, text_column=text_column, name=source), target)
    typer.echo(f"{len(frame)} reviews labelled by version {model.version}: {target}")


@app.command()
def leaderboard(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the candidates of the newest retrain: weighted F1 with interval, seconds, gate verdict, version, alias."""
    from rich.console import Console

    from reviewclf.registry.leaderboard import leaderboard as read
    from reviewclf.registry.leaderboard import render

    board = read(_tracker())
    if as_json:
        typer.echo(board.model_dump_json(indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(render(board))


@app.command()
def doctor() -> None:
    """Say what is missing here, and how to get it. Exits 1 when something needed is."""
    from reviewclf.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{finding.mark:7} {finding.subject}: {finding.text}")
    raise typer.Exit(int(any(finding.mark == "missing" for finding in findings)))


def _tracker() -> Tracker:
    from reviewclf.registry.tracking import Tracker

    return Tracker(load_settings().tracking_uri)


def _report(tracking_uri: str) -> bool:
    """Print the leaderboard of a running MLflow server; whether there is a champion."""
    from rich.console import Console

    from reviewclf.registry.leaderboard import leaderboard as read
    from reviewclf.registry.leaderboard import render
    from reviewclf.registry.tracking import Tracker

    board = read(Tracker(tracking_uri))
    Console(width=None if sys.stdout.isatty() else 160).print(render(board))
    return board.champion is not None


def main() -> None:
    """Run the command; a user's mistake ends as one message and exit code 1, without a traceback."""
    try:
        app()
    except ReviewclfError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    sys.argv[0] = Path(sys.argv[0]).name
    main()
