"""The server of online answers against ``mlflow models serve`` with the same model, in the same run on the same machine."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from tests.benchmarks import ROOT, Measurement, load_reviews
from tests.benchmarks.champion import register_classifier

_SHARED = ROOT.parent / "shared"
_ARCHITECTURE = _SHARED / "models" / "rubert-tiny2-architecture"
_ENCODER = _SHARED / "models" / "e5-small-ru"
_VOTES = _SHARED / "data" / "votes.csv"
_CLASSES = 9
_CLIENTS = (1, 8, 64)
_COMPARED_AT = 8
_TARGET = 4.5
_SECONDS = 6.0
# Both servers take turns, so that a busy machine slows both alike.
_TURNS = 2
_START_SECONDS = 180.0


@dataclass(frozen=True)
class Load:
    """What clients saw: requests per second, and milliseconds by percentile."""

    rate: float
    p50: float
    p99: float
    requests: int


def measure() -> list[Measurement]:
    """Requests per second of one review each."""
    measurements = []
    for name, kind, make, target in (
        ("rubert-tiny2's architecture, random weights", "encoder", _random_encoder, _TARGET),
        ("e5-small-ru, frozen, on voted reviews", "frozen-encoder", _frozen_encoder, None),
    ):
        with tempfile.TemporaryDirectory(prefix="reviewclf-serving-") as scratch:
            folder = Path(scratch)
            if make(folder / "classifier"):
                measurements.extend(_compare(folder, name, kind, target))
    return measurements


def _compare(folder: Path, name: str, kind: str, target: float | None) -> list[Measurement]:
    texts, source = load_reviews()
    uri = register_classifier(f"sqlite:///{folder}/mlflow/mlflow.db", folder / "classifier", kind=kind, example=texts[0])
    ours: dict[int, list[Load]] = {clients: [] for clients in _CLIENTS}
    theirs: list[Load] = []
    their_bodies = [
        json.dumps({"dataframe_split": {"columns": ["text"], "data": [[text]]}}, ensure_ascii=False) for text in texts
    ]
    our_bodies = [json.dumps({"texts": [text]}, ensure_ascii=False) for text in texts]
    with _mlflow_server(uri) as their_port, _our_server(uri, folder) as our_port:
        _ask(their_port, "/invocations", 8, 2.0, their_bodies)
        _ask(our_port, "/predict", 8, 2.0, our_bodies)
        for _ in range(_TURNS):
            theirs.append(_ask(their_port, "/invocations", _COMPARED_AT, _SECONDS, their_bodies))
            for clients in _CLIENTS:
                ours[clients].append(_ask(our_port, "/predict", clients, _SECONDS, our_bodies))
    baseline = _mean(theirs)
    found = []
    for clients in _CLIENTS:
        load = _mean(ours[clients])
        compared = clients == _COMPARED_AT
        note = f"{source}, one a request; {name}; p50 {load.p50:.1f} ms, p99 {load.p99:.1f} ms"
        if compared:
            note += f"; against mlflow models serve, p50 {baseline.p50:.1f} ms, p99 {baseline.p99:.1f} ms"
        found.append(
            Measurement(
                name=f"reviewclf serve, {clients} client{'s' if clients > 1 else ''}",
                rows=load.requests,
                baseline=baseline.rate if compared else None,
                ours=load.rate,
                note=note,
                target=target if compared else None,
            )
        )
    return found


def _ask(port: int, path: str, clients: int, seconds: float, bodies: list[str]) -> Load:
    wanted = {"port": port, "path": path, "clients": clients, "seconds": seconds, "bodies": bodies}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=seconds + 120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failures"]:
        raise RuntimeError(f"port {port}, {clients} clients: answers other than 200: {found['failures']}")
    p50, p99 = np.percentile(found["latencies"], [50, 99])
    return Load(found["requests"] / found["seconds"], float(p50), float(p99), found["requests"])


def _mean(loads: list[Load]) -> Load:
    values = [[load.rate, load.p50, load.p99] for load in loads]
    rate, p50, p99 = np.mean(values, axis=0)
    return Load(float(rate), float(p50), float(p99), sum(load.requests for load in loads))


@contextmanager
def _mlflow_server(tracking_uri: str) -> Iterator[int]:
    import socket

    from reviewclf.registry import CHAMPION, REGISTERED_MODEL

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{REGISTERED_MODEL}@{CHAMPION}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # It starts `uvicorn` by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with _process(command, {"MLFLOW_TRACKING_URI": tracking_uri, "PATH": path}) as (process, log):
        _until_ready(process, log, f"http://127.0.0.1:{port}/ping")
        yield port


@contextmanager
def _our_server(tracking_uri: str, folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "reviewclf.cli", "serve", "--port", "0"]
    variables = {"MLFLOW_TRACKING_URI": tracking_uri, "REVIEWCLF_HOME": str(folder / "home")}
    with _process(command, variables) as (process, log):
        port = 0
        until = time.monotonic() + _START_SECONDS
        while not port and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
            port = int(found[1]) if found else 0
        _until_ready(process, log, f"http://127.0.0.1:{port}/health/ready")
        yield port


@contextmanager
def _process(command: list[str], variables: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd=scratch, start_new_session=True)
        try:
            yield process, log
        finally:
            # MLflow's server is a child of the command.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _until_ready(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer: {log.read_text(errors='replace')[-2000:]}")


def _random_encoder(folder: Path) -> bool:
    """Save an exported encoder of the size that the default candidates have; whether its architecture is here."""
    if not _ARCHITECTURE.exists():
        return False
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from reviewclf.training.encoder_classifier import EncoderClassifier
    from reviewclf.training.encoder_network import EncoderNetwork

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(_ARCHITECTURE, num_labels=_CLASSES)
    EncoderClassifier.from_network(
        EncoderNetwork(AutoModelForSequenceClassification.from_config(config).base_model, classes=_CLASSES, pooling="mean"),
        AutoTokenizer.from_pretrained(_ARCHITECTURE),
        classes=[str(position) for position in range(_CLASSES)],
        seen=list(range(_CLASSES)),
        prior=np.full(_CLASSES, 1 / _CLASSES),
        candidate={},
        texts=load_reviews()[0][:50],
        max_length=128,
        precision="int8",  # random weights say nothing about which labels 8 bits change
    ).save(folder)
    return True


def _frozen_encoder(folder: Path) -> bool:
    """Save a pretrained encoder with a classifier trained on the voted reviews; whether they are here."""
    if not (_ENCODER.exists() and _VOTES.exists()):
        return False
    from reviewclf.settings import load_settings
    from reviewclf.taxonomy import Taxonomy
    from reviewclf.training.candidates import load_candidates
    from reviewclf.training.rows import TrainingJob

    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)
    with (_SHARED / "data" / "reviews.csv").open(encoding="utf-8", newline="") as file:
        texts = {row["review_id"]: row["text"] for row in csv.DictReader(file)}
    with _VOTES.open(encoding="utf-8", newline="") as file:
        votes = [(texts[row["review_id"]], row["label"]) for row in csv.DictReader(file) if row["annotator"] == "reader-2"]
    frame = pd.DataFrame(votes, columns=["text_clean", "label"]).assign(weight=1.0)
    frame = frame[frame["label"].isin(taxonomy.names)]
    bundled = load_candidates(ROOT / "tests" / "candidates-e5-small-ru.yaml")
    candidate = next(candidate for candidate in bundled if candidate.kind == "frozen-encoder")
    stems = taxonomy.keyword_stems
    job = TrainingJob(frame, frame.iloc[:0], classes=taxonomy.names, stems=stems, encoders=_SHARED / "models")
    candidate.train(job).save(folder)
    return True
