"""The `reviewclf` command. Heavy packages are imported inside the commands, so that help and errors come at once."""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic_core import to_json

from reviewclf import __version__, cli_store
from reviewclf.errors import ReviewclfError
from reviewclf.settings import load_settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from reviewclf.registry.tracking import Tracker

Quoting = Literal["auto", "standard", "backslash", "none"]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

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
def up(once: Annotated[bool, typer.Option("--once", help="Stop everything after the leaderboard.")] = False) -> None:
    """Start Airflow and MLflow here, drive the DAGs to a champion, print the leaderboard, keep serving both UIs."""
    from reviewclf.local import up as start

    raise typer.Exit(start(load_settings(), once=once, report=_report))


@app.command()
def night(
    steps: Annotated[str, typer.Option(help="Which steps, separated by commas.")] = "ingest,label,retrain,score,maintain",
    as_json: _AsJson = False,
) -> None:
    """Run one night here, without Airflow: ingest, label, retrain, score, keep house. Exits 1 where one of the DAGs would fail.

    Finished tasks and logs go to standard error, the report at the end to standard output.
    """
    from contextlib import redirect_stdout
    from datetime import UTC, datetime

    from rich.console import Console

    from reviewclf.night import STEPS, render, run_night

    wanted = [name.strip() for name in steps.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in STEPS]
    if unknown or not wanted:
        said = f"no step is called {', '.join(unknown)}" if unknown else "no step is named"
        raise typer.BadParameter(f"{said}; the steps of a night are {', '.join(STEPS)}", param_hint="--steps")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("reviewclf").setLevel(logging.INFO)
    # A promotion is told again to whoever repeats it: each night is somebody else.
    who = f"{_user()} (reviewclf night of {datetime.now(UTC):%Y-%m-%d %H:%M:%S})"
    with redirect_stdout(sys.stderr):
        report = run_night(load_settings(), who=who, console=Console(stderr=True), steps=wanted)
    _show(as_json, report, render(report))
    raise typer.Exit(int(report.failed))


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="IN", help="CSV, TSV, JSON Lines or Parquet file with reviews.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="File to write; its ending says which kind.")],
    text_column: Annotated[str, typer.Option(help="Column that holds the reviews.")] = "text",
    abstain: Annotated[bool, typer.Option("--abstain", help="Label doubtful reviews «не уверен».")] = False,
    excel_safe: Annotated[
        bool, typer.Option("--excel-safe", help="Put an apostrophe before cells that Excel would run as a formula.")
    ] = False,
    encoding: Annotated[str | None, typer.Option(help="Of IN; default: recognised.")] = None,
    separator: Annotated[str | None, typer.Option(help="Of IN; default: recognised.")] = None,
    quoting: Annotated[Quoting, typer.Option(help="What quotes mean in IN; default: recognised.")] = "auto",
) -> None:
    """Label the reviews of a file with the champion: its columns, and predicted_label, confidence, model_version."""
    from reviewclf.data.frames import check_target, read_frame, to_arrow, writable_suffix, write_frame
    from reviewclf.data.sources.columnar import parquet_schema
    from reviewclf.data.sources.files import COLUMNAR, suffix_of
    from reviewclf.data.sources.options import ReadOptions
    from reviewclf.predict import check_reviews, predict_frame
    from reviewclf.registry.model import load_alias

    check_target(target)
    options = ReadOptions(text_column=text_column, encoding=encoding, separator=separator, quoting=quoting, pattern="--{lower}")
    frame = read_frame(source, setting="IN", options=options)
    check_reviews(frame, text_column=text_column, name=source)
    schema = parquet_schema(source) if suffix_of(source) in COLUMNAR else None
    if writable_suffix(target) in COLUMNAR:
        to_arrow(frame, schema, name=target)
    model = load_alias(_tracker())
    answers = predict_frame(frame, model, text_column=text_column, name=source, abstain=abstain)
    write_frame(answers, target, excel_safe=excel_safe, schema=schema)
    unlabelled = answers["predicted_label"].isna()
    if unlabelled.any():
        first = int(unlabelled.to_numpy().argmax()) + 1
        typer.echo(
            f"{source}: {unlabelled.sum()} texts were saved in a wrong encoding and cannot be read again, the first in row "
            f"{first}: they have no label",
            err=True,
        )
    typer.echo(f"{len(frame) - unlabelled.sum()} reviews labelled by version {model.version}: {target}")


@app.command()
def leaderboard(as_json: _AsJson = False) -> None:
    """Show the candidates of the newest retrain: weighted F1 with interval, seconds, gate verdict, version, alias."""
    from reviewclf.promotion.leaderboard import leaderboard as read
    from reviewclf.promotion.leaderboard import render

    board = read(_tracker())
    _show(as_json, board, render(board))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="Number of a version of the registered model.")],
    reason: Annotated[str, typer.Option(help="Kept in the history and on the version.")],
    force: Annotated[bool, typer.Option("--force", help="Also a version that has not passed the gate.")] = False,
) -> None:
    """Make a version the champion; the old champion becomes `previous`."""
    from reviewclf.stages.promotion import promote_version

    details = promote_version(load_settings(), version, reason=reason, who=_user(), force=force).details
    typer.echo(
        f"version {details['champion']} is champion, previous: {details['previous'] or 'none'}"
        if details["promoted"]
        else details["reason"]
    )


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Kept in the history and on the version that goes.")] = "") -> None:
    """Make `previous` the champion again; what was rolled back does not come back by itself on the same data."""
    from reviewclf.stages.promotion import rollback as roll_back

    details = roll_back(load_settings(), reason=reason, who=_user()).details
    typer.echo(f"version {details['champion']} is champion again, previous: {details['previous'] or 'none'}")


@app.command()
def history(newest: Annotated[int, typer.Option(help="How many entries.")] = 20, as_json: _AsJson = False) -> None:
    """Show what happened to the champion: promotions, rollbacks, rejections, by whom and why, newest first."""
    from reviewclf.promotion.aliases import render
    from reviewclf.promotion.history import History

    events = History.of(load_settings()).events()[::-1][:newest]
    _show(as_json, events, render(events))


@app.command()
def retire(dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name them.")] = False) -> None:
    """Remove versions that are older and more than REVIEWCLF_REGISTRY__KEEP_* allow; those with an alias stay."""
    from reviewclf.stages.promotion import retire as remove

    gone: list[str] = remove(load_settings(), who=_user(), dry_run=dry_run).details["versions"]  # type: ignore[assignment]
    typer.echo(f"{'would retire' if dry_run else 'retired'}: {', '.join(f'version {number}' for number in gone) or 'none'}")


app.add_typer(cli_store.app, name="store")

review = typer.Typer(help="The queue of doubtful labels for people.", no_args_is_help=True)
app.add_typer(review, name="review")


@review.command("export")
def review_export(
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="CSV to fill in (column `answer`), or `.json` with tasks for Label Studio.")
    ],
    rows: Annotated[int | None, typer.Option(help="Reviews; default: REVIEWCLF_REVIEW__ROWS.")] = None,
    separator: Annotated[
        str | None, typer.Option(help="Of the CSV's columns; Excel in Russian puts a file into columns at `;`. Default: comma.")
    ] = None,
) -> None:
    """Write the most doubtful labels, most useful first. Excel runs no formula in the CSV that a review begins with."""
    from reviewclf.data.frames import write_frame
    from reviewclf.labeling.label_studio import label_studio_config, label_studio_tasks
    from reviewclf.stages.review import make_queue
    from reviewclf.taxonomy import Taxonomy

    settings = load_settings()
    if rows is not None:
        settings = settings.model_copy(update={"review": settings.review.model_copy(update={"rows": rows})})
    queue = make_queue(settings)
    if target.suffix.lower() == ".json":
        target.write_text(label_studio_tasks(queue), encoding="utf-8")
        config = target.with_suffix(".xml")
        config.write_text(label_studio_config(Taxonomy.load(settings.taxonomy).names), encoding="utf-8")
        typer.echo(f"{len(queue)} tasks: {target}; labelling configuration for Label Studio: {config}")
        return
    filled_in = queue.assign(answer="", annotator="")
    write_frame(filled_in, str(target), for_people=True, excel_safe=True, separator=separator)
    typer.echo(f"{len(queue)} reviews: {target}; fill in the column `answer`, then run `reviewclf review import {target}`")


@review.command("import")
def review_import(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="The filled-in queue, or Label Studio's export: JSON, JSON_MIN, CSV or TSV.")
    ],
    control: Annotated[
        str | None, typer.Option(help="Control of Label Studio, or column, that holds the answers; default: found by them.")
    ] = None,
) -> None:
    """Take people's answers back; they win over every other vote. Exits 1 when there was one that could not be taken."""
    from reviewclf.labeling.answers import read_answers
    from reviewclf.stages.review import import_answers
    from reviewclf.taxonomy import Taxonomy

    settings = load_settings()
    answers = read_answers(str(source), Taxonomy.load(settings.taxonomy).names, control=control)
    result = import_answers(settings, answers.frame, source=source.stem)
    details: dict[str, Any] = result.details
    problems = [*answers.problems, *details["problems"]]
    for note in (*answers.notes, *details["notes"]):
        typer.echo(f"note: {note}", err=True)
    for problem in problems:
        typer.echo(f"not taken: {problem}", err=True)
    summary = f"{details['answers']} answers taken in, {result.counts['changed']} labels changed"
    typer.echo(f"{summary}; {details['known']} known before, {len(problems)} not taken")
    raise typer.Exit(int(bool(problems)))


dataset = typer.Typer(help="Training sets: what they hold, and how two differ.", no_args_is_help=True)
app.add_typer(dataset, name="dataset")


@dataset.command("show")
def dataset_show(
    name: Annotated[str, typer.Argument(metavar="A", help="Digest, its beginning, or `newest`.")] = "newest",
) -> None:
    """Print the card of a training set: rows by class, origin and split, what was left out and why, filters, versions."""
    from reviewclf.data.card import card_markdown
    from reviewclf.stages.dataset import find_dataset

    typer.echo(card_markdown(find_dataset(load_settings(), name)))


@dataset.command("list")
def dataset_list() -> None:
    """List the training sets of the store, the newest first."""
    from reviewclf.stages.dataset import list_datasets

    for made, manifest in list_datasets(load_settings()):
        counts = ", ".join(f"{split} {manifest.counts.get(f'{split}_rows', 0)}" for split in ("train", "validation", "test"))
        typer.echo(f"{manifest.digest}  {made:%Y-%m-%d %H:%M} UTC  {counts}")


@dataset.command("rebuild")
def dataset_rebuild(
    name: Annotated[str, typer.Argument(help="Digest of a training set, or the beginning of it.")],
) -> None:
    """Make a training set again from the versions of the tables that it was made from, and check that it is the same."""
    from reviewclf.stages.dataset import rebuild

    card = rebuild(load_settings(), name)
    typer.echo(f"dataset {card.digest}: the same rows came out of version {card.details['snapshot']} of the store")


@dataset.command("diff")
def dataset_diff(
    old: Annotated[str, typer.Argument(metavar="A", help="Digest, its beginning, `newest` or `previous`.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The same.")],
) -> None:
    """Say how training set B differs from A: inputs, counts, reviews that came, went, or changed label, split or weight."""
    from reviewclf.stages.dataset import diff

    for line in diff(load_settings(), old, new):
        typer.echo(line)


quarantine = typer.Typer(help="Rows that were refused: shown, and read again.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")

_Reason = Annotated[str | None, typer.Option(help="Only reasons that begin so, such as `too_many_fields`.")]
_SourceName = Annotated[str | None, typer.Option("--source", help="Only rows of this source, as the list names it.")]


@quarantine.command("list")
def quarantine_list(
    reason: _Reason = None,
    source: _SourceName = None,
    rows: Annotated[int, typer.Option(min=0, help="So many rows, the newest; 0: counts alone.")] = 20,
    as_json: _AsJson = False,
) -> None:
    """Show what was refused, by source and reason, and the newest rows of it."""
    from reviewclf.stages.quarantine import overview, refused_rows

    found = refused_rows(load_settings(), reason=reason, source=source)
    nothing = "nothing is in quarantine" + (" like that" if reason or source else "")
    _show(as_json, found, overview(found, rows) if found else nothing)


@quarantine.command("replay")
def quarantine_replay(reason: _Reason = None, source: _SourceName = None) -> None:
    """Read refused rows again with today's settings and code; those that pass become reviews, the others stay."""
    from reviewclf.stages.quarantine import replay

    done = replay(load_settings(), reason=reason, source=source)
    counts: dict[str, int] = done.counts
    typer.echo(
        f"{counts['rows_in']} rows read again: {counts['clean']} new reviews, {counts['duplicates']} duplicates, "
        f"{counts['known']} known already, {counts['left']} still refused"
    )
    for name, count in dict(done.details["reasons"]).items():  # type: ignore[arg-type]
        typer.echo(f"  {name}: {count}")


predictions = typer.Typer(help="What the champion has answered, night after night.", no_args_is_help=True)
app.add_typer(predictions, name="predictions")


@predictions.command("export")
def predictions_export(
    target: Annotated[str, typer.Argument(metavar="OUT", help="CSV, TSV, JSON Lines or Parquet file to write.")],
    version: Annotated[str | None, typer.Option(help="Only answers of this model version; default: the newest ones.")] = None,
    role: Annotated[str, typer.Option(help="Answers given as `champion` or in its shadow as `challenger`.")] = "champion",
) -> None:
    """Write the published answers with their reviews; exact copies of a review have the answer of the first one."""
    from reviewclf.data.frames import write_frame
    from reviewclf.stages.score import read_predictions

    answers = read_predictions(load_settings(), version=version, role=role)
    write_frame(answers, target)
    typer.echo(f"{len(answers)} predictions: {target}")


@app.command()
def health(
    as_json: _AsJson = False,
    nights: Annotated[int, typer.Option(min=1, help="So many reports, the newest first.")] = 1,
) -> None:
    """Say how production is: drift of input, answers and confidence, abstentions, estimated F1. Exits 1 before any scoring."""
    from reviewclf.monitoring.report import report_text
    from reviewclf.stages.score import health_history

    reports = health_history(load_settings(), newest=nights)
    if not reports:
        typer.echo("nothing was scored yet: the DAG reviews_score looks at production once there is a champion", err=True)
        raise typer.Exit(1)
    _show(as_json, reports[0] if nights == 1 else reports, "\n\n".join(map(report_text, reports)))


@app.command()
def erase(
    review_ids: Annotated[
        list[str] | None, typer.Argument(metavar="REVIEW_ID...", help="As the store or the source has it.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="File with an id a line.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only say what there is.")] = False,
) -> None:
    """Erase reviews for good: tables, their versions, outputs, journals, training sets. End all other runs before.

    They do not come back from a source that still holds them. What was trained on them is listed.
    """
    from reviewclf.stages.erase import erase as run

    lines = source.read_text(encoding="utf-8-sig").splitlines() if source is not None else []
    wanted = [review_id.strip() for review_id in (*(review_ids or ()), *lines) if review_id.strip()]
    if not wanted:
        raise typer.BadParameter("name at least one review, or a file with --from")
    cli_store.show_erasure(run(load_settings(), wanted, dry_run=dry_run))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: REVIEWCLF_SERVING__HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: REVIEWCLF_SERVING__PORT.", min=0, max=65535)] = None,
) -> None:
    """Answer over HTTP with the champion, and follow the alias: a promotion or a rollback is live within seconds."""
    from reviewclf.serving.server import serve as run

    settings = load_settings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(settings.model_copy(update={"serving": settings.serving.model_copy(update=given)}))


@app.command()
def doctor(
    details: Annotated[bool, typer.Option("--details", help="Print long findings whole.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Say what is missing here, and how to get it, in a line each. Exits 1 when something needed is."""
    from reviewclf.doctor import examine

    findings = examine()
    lines = [finding.whole if details else finding.line for finding in findings]
    _show(as_json, [finding._asdict() for finding in findings], "\n".join(lines))
    raise typer.Exit(int(any(finding.mark == "missing" for finding in findings)))


def _user() -> str:
    """Who is at the keyboard, for the history."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _show(as_json: bool, content: Any, for_people: str | RenderableType) -> None:
    """Print `content` as JSON, or what people read: text as it is, or a table."""
    if as_json:
        typer.echo(to_json(content, indent=2, inf_nan_mode="null").decode())
    elif isinstance(for_people, str):
        typer.echo(for_people)
    else:
        from rich.console import Console

        # Wide enough for all of it where nobody looks at a terminal.
        Console(width=None if sys.stdout.isatty() else 160).print(for_people)


def _tracker() -> Tracker:
    from reviewclf.registry.tracking import Tracker

    return Tracker(load_settings().tracking_uri)


def _report(tracking_uri: str) -> bool:
    """Print the leaderboard of a running MLflow server; whether there is a champion."""
    from reviewclf.promotion.leaderboard import leaderboard as read
    from reviewclf.promotion.leaderboard import render
    from reviewclf.registry.tracking import Tracker

    board = read(Tracker(tracking_uri))
    _show(False, board, render(board))
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
