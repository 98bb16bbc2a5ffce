"""The pages of the reference, written from the code whenever the site is built: they cannot be stale."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import typer
import yaml
from fastapi import FastAPI
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from reviewclf import cli, tables
from reviewclf.serving.app import create_app
from reviewclf.serving.metrics import Metrics
from reviewclf.settings import ServingSettings, Settings, describe_settings

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "reviewclf"

# Tables of the store, by the name of their contract in reviewclf/tables.py.
TABLES = {
    "raw": "RAW_SCHEMA",
    "seen": "SEEN_SCHEMA",
    "erased": "ERASED_SCHEMA",
    "clean": "CLEAN_SCHEMA",
    "history": "HISTORY_SCHEMA",
    "quarantine": "QUARANTINE_SCHEMA",
    "duplicates": "DUPLICATE_SCHEMA",
    "near_duplicates": "NEAR_DUPLICATE_SCHEMA",
    "bands": "BANDS_SCHEMA",
    "votes": "VOTE_SCHEMA",
    "unvoted": "TEXT_SCHEMA",
    "labels": "LABEL_SCHEMA",
    "synthetic": "SYNTHETIC_SCHEMA",
    "rejected_synthetic": "SYNTHETIC_SCHEMA",
    "predictions": "PREDICTION_SCHEMA",
    "health": "HEALTH_SCHEMA",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that MkDocs has found."""
    pages = {
        "settings.md": settings_page(),
        "command-line.md": command_line_page(),
        "http.md": http_page(),
        "tables.md": tables_page(),
        "mlflow.md": mlflow_page(),
        "openapi.json": json.dumps(http_app().openapi(), ensure_ascii=False, indent=2),
    }
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}", content=content))
    return files


def settings_page() -> str:
    """Every setting with its default, a section for each group."""
    lines = [
        "# Settings",
        "Settings are environment variables, or lines of a file `.env` in the working directory. Two underscores lead into a "
        "group: `REVIEWCLF_GATE__MIN_WEIGHTED_F1=0.8`. A list or an object is written as JSON. An unknown or wrong setting is "
        "reported by its name.",
        "MLflow (`MLFLOW_TRACKING_URI`, …), AWS (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …) and Airflow (`AIRFLOW__…`) keep "
        "their own variables.",
    ]
    sections: dict[str, list[tuple[str, ...]]] = {}
    for variable, default, meaning in describe_settings():
        group, nested, _ = variable.removeprefix("REVIEWCLF_").lower().partition("__")
        sections.setdefault(group if nested else "", []).append((f"`{variable}`", _code(default), meaning))
    for group, rows in sections.items():
        lines += [f"## {group.capitalize() or 'General'}"]
        if group:
            lines += [str(Settings.model_fields[group].annotation.__doc__)]
        lines += [_table(("variable", "default", "meaning"), rows)]
    return "\n\n".join(lines)


def command_line_page() -> str:
    """Every command, as Typer itself describes it."""
    command = typer.main.get_command(cli.app)
    text: str = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="reviewclf"), name="reviewclf")
    return text.replace("# `reviewclf`", "# Command line", 1)


def http_app() -> FastAPI:
    """The application with its default limits and with keys, for its description alone."""
    settings = ServingSettings()
    service: Any = SimpleNamespace(settings=settings, keys=True, metrics=Metrics(), predict=None)
    return create_app(service)


def http_page() -> str:
    """Addresses, bodies and metrics of ``reviewclf serve``."""
    described = http_app().openapi()
    lines = [
        "# HTTP",
        f"{described['info']['description']} The description for machines is [openapi.json](openapi.json); a running server "
        "answers it under `/openapi.json`.",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            lines += [f"## `{method.upper()} {path}`", f"{operation['summary']}."]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body:
                lines += ["Body:", _fields(body)]
            answers = []
            for status, answer in operation["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
                answers.append((status, answer["description"], _type(schema) if schema else ""))
            lines += [_table(("status", "meaning", "answer"), answers)]
    lines += ["## Bodies"]
    for name, schema in described["components"]["schemas"].items():
        summary = schema.get("description", "").partition("\n")[0]
        lines += [f"### {name}", *([summary] if summary else []), _fields(schema)]
    lines += [
        "## Metrics",
        "`GET /metrics` answers these to Prometheus, added up over the processes of the server, with "
        "`process_resident_memory_bytes` and `process_cpu_seconds_total` of all of them.",
    ]
    families = sorted(Metrics().registry.collect(), key=lambda family: family.name)
    lines += [_table(("metric", "kind", "meaning"), ((f"`{item.name}`", item.type, item.documentation) for item in families))]
    return "\n\n".join(lines)


def tables_page() -> str:
    """Columns of each table, and what the comments in the code say about them."""
    source = Path(tables.__file__).read_text(encoding="utf-8")
    remarks = {name: _prose(comment) for comment, name in re.findall(r"((?:^# .*\n)+)(\w+_SCHEMA) = ", source, re.MULTILINE)}
    lines = [
        "# Tables",
        "What the store holds: Delta tables below `tables/`, and snapshots that name the version of each. Other tools "
        "[read them as they are](../guides/open-tables.md). "
        "`review_id` is the source's id, else a hash of source and text; `text_hash` is the digest of the cleaned text.",
    ]
    for table, name in TABLES.items():
        schema: pa.Schema = getattr(tables, name)
        lines += [f"## {table}", *([remarks[name]] if name in remarks else [])]
        lines += [_table(("column", "type"), ((f"`{field.name}`", f"`{field.type}`") for field in schema))]
    return "\n\n".join(lines)


def mlflow_page() -> str:
    """Tags, metrics and artifacts that the code writes, with the words of ``mlflow.yaml``.

    Raises
    ------
    PluginError
        A name in the code is not described, or one that is described is no longer in the code.
    """
    described: dict[str, dict[str, str]] = yaml.safe_load((HERE / "mlflow.yaml").read_text(encoding="utf-8"))
    written = set(names_in_code())
    known = {name for section in described.values() for name in section}
    filled = {name for name in known if "…" in name}
    exact = known - filled
    missing = sorted(
        name
        for name in written - known
        if not any(_fits(pattern, name) for pattern in filled)
        and not ("…" in name and any(_fits(name, text) for text in exact))
    )
    if missing:
        raise PluginError(f"docs/mlflow.yaml does not describe what the code writes to MLflow: {', '.join(missing)}")
    if stale := sorted(name for name in exact - written if not any(_fits(text, name) for text in written if "…" in text)):
        raise PluginError(f"docs/mlflow.yaml describes names that are not in the code: {', '.join(stale)}")
    lines = [
        "# MLflow names",
        "Experiment and registered model are both called `review-classifier`. Its aliases are `champion`, which production "
        "follows, `previous`, which a rollback returns to, and `challenger`, the best candidate that waits. A retrain is one "
        "run, with a child run for each candidate; a labelling and a scoring are runs of their own.",
    ]
    for section, rows in described.items():
        lines += [f"## {section}", _table(("name", "meaning"), ((f"`{name}`", text) for name, text in rows.items()))]
    return "\n\n".join(lines)


_GROUPS = "gold|validation|latency|train|health|drift|shadow|labels|augmentation|evaluation|gate|dataset|cost|scoring"
_NAME = re.compile(rf"reviewclf\.[a-z_]+\.?|({_GROUPS})/[a-z0-9_/…]+(\.\w+)?")


def names_in_code() -> Iterator[str]:
    """Names of tags, metrics and artifacts in the rooms that speak to MLflow; «…» stands for what the code fills in."""
    for room in ("registry", "promotion", "stages", "monitoring", "labeling"):
        for file in sorted((PACKAGE / room).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            filled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
            parts = {id(part) for node in filled for part in node.values}
            texts = [
                "".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "…" for part in node.values)
                for node in filled
            ]
            texts += [
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
            ]
            yield from (text for text in texts if _NAME.fullmatch(text) and text != "reviewclf.prom")


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace("…", ".+"), name) is not None


def _prose(comment: str) -> str:
    return " ".join(line.removeprefix("# ") for line in comment.splitlines())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fields(schema: Mapping[str, Any]) -> str:
    if "properties" not in schema:
        return _type(schema)
    required = schema.get("required", ())
    rows = ((f"`{name}`", _type(field), "yes" if name in required else "") for name, field in schema["properties"].items())
    return _table(("field", "type", "always there"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(choice) for choice in choices)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return "null" if kind == "null" else kind
