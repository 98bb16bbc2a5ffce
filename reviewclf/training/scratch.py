"""The scratch folder of one fine-tuning: whose checkpoints lie in it, and which of them is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this module is itself imported inside functions only
import transformers  # noqa: TID253
from safetensors import SafetensorError, safe_open

from reviewclf.training.encoder_network import EncoderNetwork

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def scratch(checkpoints: Path | None, content: list[Any], network: EncoderNetwork) -> Iterator[Path]:
    """Folder of this very job; removed when the job is done, as those of other jobs are before."""
    if checkpoints is None:
        with tempfile.TemporaryDirectory(prefix="reviewclf-encoder-") as folder:
            yield Path(folder)
        return
    # All that decides what comes out: settings, rows, the weights to start from, versions, the kind of machine.
    digest = hashlib.sha256(
        json.dumps([*content, torch.__version__, transformers.__version__, torch.cuda.is_available()]).encode()
    )
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    own = checkpoints / f"job-{digest.hexdigest()[:32]}"
    for other in checkpoints.glob("job-*"):
        if other != own:
            logger.info("%s: checkpoints of another job are removed", other)
            shutil.rmtree(other, ignore_errors=True)
    yield own
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # something else lies there too
        checkpoints.rmdir()


def last_complete(folder: Path) -> Path | None:
    """The last checkpoint that is whole, and whose best one is; a kill may have left a part of one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    for path in found:
        if not _is_whole(path):
            continue
        best = transformers.TrainerState.load_from_json(str(path / "trainer_state.json")).best_model_checkpoint
        if best is None or _is_whole(Path(best)):
            return path
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "model.safetensors", "pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(path) for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")])
