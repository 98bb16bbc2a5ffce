"""What integration tests share: real services, started here and stopped at the end, and reviews that are labelled already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from reviewclf.settings import load_settings
from tests.conftest import forget_tracking_server
from tests.integration.test_stages import run_ingest, run_label
from tests.services import SeaweedFS, forget_s3_clients


class S3(NamedTuple):
    """A running S3 server: where it listens, and a bucket of this test session."""

    endpoint: str
    bucket: str


@pytest.fixture(scope="package")
def labelled_sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store in which the bundled sample is labelled; to be copied."""
    settings = load_settings(_env_file=None, home=tmp_path_factory.mktemp("labelled"))
    run_ingest(settings)
    run_label(settings)
    forget_tracking_server()
    return settings.store_uri


@pytest.fixture(scope="package")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS with one identity, and the standard AWS variables pointing to it."""
    folder = tmp_path_factory.mktemp("s3")
    seaweed = SeaweedFS(folder, logs=folder, buckets=["reviews"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.variables.items():
            patch.setenv(name, value)
        try:
            seaweed.server.start()
            seaweed.server.wait()
            yield S3(seaweed.endpoint, "reviews")
        finally:
            seaweed.server.stop(grace=0)
            forget_s3_clients()
