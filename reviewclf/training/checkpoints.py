"""Pretrained encoders: where they are, and their body and tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from reviewclf.errors import EncoderUnavailableError, TrainingError

# Name on the hub, such as cointegrated/rubert-tiny2, or of a folder in REVIEWCLF_ENCODERS.
CheckpointName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
# Average of the token states, or the first token's state.
Pooling = Literal["mean", "cls"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_SECONDS = 5.0


def resolve_checkpoint(name: str, encoders: Path | None) -> Path | str:
    """Find a pretrained encoder.

    Parameters
    ----------
    name : str
        As on the hub: ``cointegrated/rubert-tiny2``.
    encoders : Path or None
        Folder of local checkpoints. Those in ``<name>``, ``<last part of name>`` or ``<org>--<name>`` stand in for the hub.

    Returns
    -------
    Path or str
        Folder of a local checkpoint or of one in the hub's cache; else `name` itself, which the hub has.

    Raises
    ------
    EncoderUnavailableError
        It is nowhere, or its folder holds no weights; the message says how to get it. Known within seconds: the hub is asked
        once, and not at all with ``HF_HUB_OFFLINE``.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if encoders is not None:
        for folder in dict.fromkeys((encoders / name, encoders / name.split("/")[-1], encoders / name.replace("/", "--"))):
            if folder.is_dir():
                return _with_weights(folder)
    for file in _WEIGHTS:
        cached = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached).parent
    where = f"not in the folder {encoders} of REVIEWCLF_ENCODERS" if encoders else "REVIEWCLF_ENCODERS names no folder"
    advice = (
        f"run `hf download {name}` where there is a network, or put the checkpoint's files into <folder>/{name.split('/')[-1]} "
        "and set REVIEWCLF_ENCODERS=<folder>"
    )
    cached_nowhere = f"encoder {name}: {where}, not in the hub's cache, and"
    if constants.is_offline_mode():
        raise EncoderUnavailableError(f"{cached_nowhere} HF_HUB_OFFLINE is set; {advice}")
    try:
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
    except errors.RepositoryNotFoundError as error:
        raise EncoderUnavailableError(
            f"encoder {name}: {where}, and {constants.ENDPOINT} has none of this name that may be read without logging in; "
            "check `checkpoint` in the candidates file, or run `hf auth login`"
        ) from error
    except Exception as error:  # whatever a missing network, a proxy or a mirror leads to
        said = f"{constants.ENDPOINT} cannot be reached ({error!r:.120})"
        raise EncoderUnavailableError(f"{cached_nowhere} {said}; {advice}") from error
    return name


def _with_weights(folder: Path) -> Path:
    if not (folder / "config.json").exists() or not any((folder / file).exists() for file in _WEIGHTS):
        raise EncoderUnavailableError(
            f"{folder}: holds no config.json with {_WEIGHTS[0]}, so no pretrained encoder; put the whole checkpoint there "
            "(`hf download NAME --local-dir FOLDER`) or take the folder away"
        )
    return folder


def load_checkpoint(source: Path | str, title: str) -> tuple[Any, Any]:
    """Body and tokenizer of a pretrained encoder, in 32 bits.

    Raises
    ------
    TrainingError
        Files are missing or damaged, or the tokenizer cannot pad.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            body, report = AutoModel.from_pretrained(
                source, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # whatever damaged files make their readers raise
        raise TrainingError(
            f"{title}: {source}: no encoder can be loaded ({error!r:.300}); it takes config.json, model.safetensors and "
            "tokenizer.json of an encoder that Transformers knows by itself"
        ) from error
    # Transformers makes up what a file lacks and only says so. A pooler we do not use.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise TrainingError(
            f"{title}: {source}: its weights lack {len(missing)} of the tensors ({', '.join(missing[:3])}, ...), so they "
            "do not belong to its config.json; get the checkpoint anew"
        )
    if tokenizer.pad_token_id is None:
        raise TrainingError(f"{title}: {source}: its tokenizer has no padding token; choose another checkpoint")
    return body, tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers without progress bars and without its own remarks on what it loads."""
    import transformers

    theirs: Any = transformers.utils.logging
    before, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(before)
        if bars:
            theirs.enable_progress_bar()
