"""Prometheus' configuration and Grafana's board: what they ask for exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services import missing

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "infra/monitoring"
BOARD = json.loads((MONITORING / "dashboards/reviewclf.json").read_text())
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())
PROMETHEUS = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())

PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(note["expr"] for note in BOARD["annotations"]["list"]),
    *(rule["expr"] for group in RULES["groups"] for rule in group["rules"]),
]


def asked(prefix: str) -> set[str]:
    return {name for expression in EXPRESSIONS for name in re.findall(rf"\b{prefix}_\w+", expression)}


def test_figures_of_serving_exist() -> None:
    metrics = pytest.importorskip("reviewclf.serving.metrics", reason="serving is not part of this checkout")
    given = {
        name
        for family in metrics.Metrics().registry.collect()
        for name in (family.name, f"{family.name}_total", *(f"{family.name}_{end}" for end in ("bucket", "count", "sum")))
    }
    assert asked("reviewclf")
    assert asked("reviewclf") <= given


def test_figures_of_airflow_exist() -> None:
    from airflow._shared.observability import metrics

    registry = yaml.safe_load((Path(metrics.__file__).parent / "metrics_template.yaml").read_text())["metrics"]
    names = {f"airflow_{item['name'].replace('.', '_')}{'_total' if item['type'] == 'counter' else ''}" for item in registry}
    assert asked("airflow")
    assert asked("airflow") <= names


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_everything_asks_the_one_source_that_is_provided() -> None:
    (source,) = yaml.safe_load((MONITORING / "datasources.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {source["uid"]}
    assert source["secureJsonData"] == {"basicAuthPassword": "$PROMETHEUS_PASSWORD"}


def test_prometheus_takes_configuration_and_rules() -> None:
    assert PROMETHEUS["rule_files"] == ["rules.yaml"]
    tool = shutil.which("promtool")
    if tool is None:
        missing("promtool", "Debian's package prometheus has it")
    for command in (["config", "--syntax-only", "prometheus.yaml"], ["rules", "rules.yaml"]):
        done = subprocess.run([tool, "check", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_expressions_can_be_parsed(tmp_path: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        missing("promtool", "Debian's package prometheus has it")
    # A rule's expression is parsed; Grafana fills in its variable before it asks.
    rules = [
        {"record": f"expression:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "board.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run([tool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
