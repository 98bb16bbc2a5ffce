"""Writes what Prometheus has to find in files: the hash of its password, and the password itself for its own scrape."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Write `web.yaml` and `password`; the password comes from the environment."""
    import bcrypt

    os.umask(0o077)
    password = os.environ["PROMETHEUS_PASSWORD"]
    # Prometheus checks it at every scrape and remembers that it did; ten rounds are its documentation's own choice.
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode()
    (folder / "web.yaml").write_text(f"basic_auth_users:\n  metrics: '{hashed}'\n")
    (folder / "password").write_text(password)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
