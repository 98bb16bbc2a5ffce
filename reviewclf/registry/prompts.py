"""The prompts of the language model in MLflow's prompt registry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlflow

from reviewclf.manifest import digest_of
from reviewclf.registry.tracking import Tracker

if TYPE_CHECKING:
    from reviewclf.labeling.prompts import Prompt

logger = logging.getLogger(__name__)

_DIGEST_TAG = "reviewclf.digest"


def register_prompts(tracker: Tracker, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Keep every prompt in MLflow's prompt registry; a new version only where its words differ from the newest one's.

    Returns
    -------
    dict of str to int
        MLflow's version by prompt id.
    """
    versions: dict[str, int] = {}
    with tracker.errors("keep the prompts"):
        mlflow.set_tracking_uri(tracker.tracking_uri)
        for prompt in prompts:
            digest = digest_of(prompt)
            known = mlflow.genai.load_prompt(f"prompts:/{prompt.id}@latest", allow_missing=True, link_to_model=False)
            if known is not None and (known.tags or {}).get(_DIGEST_TAG) == digest:
                versions[prompt.id] = int(known.version)
                continue
            # MLflow writes its variables in double braces.
            template = [
                {
                    "role": "system",
                    "content": prompt.system.replace("{categories}", "{{categories}}").replace("{names}", "{{names}}"),
                },
                {"role": "user", "content": prompt.user.replace("{text}", "{{text}}")},
            ]
            made = mlflow.genai.register_prompt(
                name=prompt.id,
                template=template,
                commit_message=f"version {prompt.version}",
                tags={_DIGEST_TAG: digest, "reviewclf.version": str(prompt.version), "reviewclf.order": prompt.order},
            )
            versions[prompt.id] = int(made.version)
            logger.info("prompt %s@%d is version %d in MLflow", prompt.id, prompt.version, made.version)
    return versions
