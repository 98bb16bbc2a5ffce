"""Lists what an image holds, as CycloneDX 1.6 on standard output. Runs inside the image and needs nothing but its Python."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def python_packages() -> list[dict[str, Any]]:
    """Every distribution that Python can import here."""
    found = []
    for item in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", item.metadata["Name"]).lower()
        purl = f"pkg:pypi/{name}@{quote(item.version, safe='')}"
        component: dict[str, Any] = {"type": "library", "name": name, "version": item.version, "purl": purl, "bom-ref": purl}
        if license_ := item.metadata.get("License-Expression"):
            component["licenses"] = [{"expression": license_}]
        found.append(component)
    return found


def debian_packages(status: str, distribution: str) -> list[dict[str, Any]]:
    """Every package that `status`, the content of dpkg's list, calls installed."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status") != "install ok installed":
            continue
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={fields['Architecture']}&distro={distribution}"
        found.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return found


def bill(components: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the document; components come in order of their address, each once."""
    unique = {component["bom-ref"]: component for component in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "container", "name": "reviewclf", "bom-ref": "reviewclf"},
        },
        "components": [unique[key] for key in sorted(unique)],
    }


def main() -> None:
    """Look around and print."""
    release = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    distribution = f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', '')}".replace('"', "").rstrip("-")
    debian = debian_packages(DPKG.read_text(), distribution) if DPKG.exists() else []
    json.dump(bill([*python_packages(), *debian]), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
