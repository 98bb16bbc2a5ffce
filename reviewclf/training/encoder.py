"""Fine-tuning of pretrained encoders: Transformers' Trainer with what reviews need.

What makes it fast on short texts: batches of reviews of similar length, padded to the longest of each, and a vocabulary cut to
the tokens that occur: without that, most of a small multilingual encoder's step goes into the optimizer state of tokens whose
gradient is 0. Both change the speed only; the full vocabulary is back in the trained network.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reviewclf.errors import EncoderUnavailableError, TrainingError
from reviewclf.training.candidates import EncoderCandidate, EncoderParams
from reviewclf.training.linear import _check_columns, _training_rows
from reviewclf.training.onnx_session import encoder_text

if TYPE_CHECKING:
    from reviewclf.training.encoder_network import EncoderNetwork

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_SECONDS = 5.0
_ENOUGH_ROWS = 30


@dataclass(frozen=True)
class TrainedEncoder:
    """What fine-tuning ends with.

    Attributes
    ----------
    network : EncoderNetwork
        Of the best epoch, on the CPU, in evaluation mode, with one output for each class.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the checkpoint.
    history : list of dict
        One entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``, ``seconds``, and with validation rows
        ``validation_loss``, ``weighted_f1`` and ``macro_f1``.
    best_epoch : int
        From 1: the first with the best weighted F1 on validation; without validation rows the last.
    seen : list of int
        Positions of the classes with training rows. The logits of the others never win.
    prior : array, shape (k,)
        Shares of the classes in training.
    validation_logits : array of shape (m, k) or None
        What the network answers on the validation rows; None without rows. Rows without a text get the logarithm of `prior`.
    device : str
        Where it was trained.
    steps_per_second, samples_per_second : float
        Of training alone, in this process: 0 if everything had been done before.
    """

    network: EncoderNetwork
    tokenizer: Any
    history: list[dict[str, float]]
    best_epoch: int
    seen: list[int]
    prior: Floats
    validation_logits: Floats | None
    device: str
    steps_per_second: float
    samples_per_second: float


def train_encoder(
    candidate: EncoderCandidate,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    classes: Sequence[str],
    seed: int,
    encoders: Path | None,
    checkpoints: Path | None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainedEncoder:
    """Fine-tune a pretrained encoder.

    Parameters
    ----------
    candidate : EncoderCandidate
        Entry of the candidates file.
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``, which multiplies a row's loss. Training rows of weight 0 or without a
        text are left out. `validation` may be empty; then the last epoch is taken. Its weights are not used.
    classes : sequence of str, length k
        All categories, in the order wanted for the outputs.
    seed : int
        Of all randomness: on a CPU equal inputs give an equal network.
    encoders : Path or None
        Folder of local checkpoints, see :func:`resolve_checkpoint`.
    checkpoints : Path or None
        Scratch folder of this very job. A call that was killed is taken up again from what lies there and ends with the same
        network and history; what another job left there is removed. Empty after success. None: nothing is kept on the way.
    on_epoch : callable, optional
        Called with the epoch, from 1, and its entry of the history. After a kill an epoch may be told once more.

    Raises
    ------
    EncoderUnavailableError
        The checkpoint is neither here nor on a hub that can be reached.
    TrainingError
        The rows cannot be trained on, or the candidate's settings do not work out.
    """
    from transformers import set_seed

    from reviewclf.training.encoder_network import EncoderNetwork
    from reviewclf.training.encoder_rows import HeldOut, SmallVocabulary, row_weights, tokenize
    from reviewclf.training.encoder_tuner import Tuner

    title = f"candidate {candidate.name}"
    params = candidate.params
    train = without_light_rows(title, train, params.min_weight)
    _, target, weights = _training_rows(title, train, classes)
    texts = [
        text for text, weight in zip(map(encoder_text, train["text_clean"]), train["weight"], strict=True) if text and weight
    ]
    held_out = HeldOut(title, validation, classes)
    source = resolve_checkpoint(params.checkpoint, encoders)
    with _quiet():
        set_seed(seed)
        body, tokenizer = load_checkpoint(source, title)
        set_seed(seed)
        network = EncoderNetwork(body, classes=len(classes), pooling=params.pooling, dropout=params.dropout)
        _check_length(title, params, body, tokenizer)
        _freeze_pooler(body)
        tokens = tokenize(tokenizer, texts, params.max_length)
        held_out_tokens = tokenize(tokenizer, held_out.texts, params.max_length)
        vocabulary = SmallVocabulary(network, [*tokens, *held_out_tokens], tokenizer.pad_token_id)
        held_out.tokens = vocabulary.translate(held_out_tokens)
        seen = np.unique(target).tolist()
        weighing = row_weights(params, target, weights, len(classes))
        rows = [
            {"ids": ids, "label": int(label), "weight": float(weight)}
            for ids, label, weight in zip(vocabulary.translate(tokens), target, weighing, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            scratch = checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reviewclf-encoder-")))
            tuner = Tuner(
                title,
                params,
                network,
                rows,
                held_out,
                seen=seen,
                pad_id=tokenizer.pad_token_id,
                seed=seed,
                tokenizer=tokenizer,
                scratch=scratch,
                keep=checkpoints is not None,
                on_epoch=on_epoch,
            )
            tuner.run()
    vocabulary.restore()
    _never_answer(network, seen)
    prior = np.bincount(target, weights=weights, minlength=len(classes)) / weights.sum()
    # The vocabulary is the full one again, so these are the answers of the network that is handed out.
    held_out.tokens = held_out_tokens
    return TrainedEncoder(
        network=network,
        tokenizer=tokenizer,
        history=tuner.progress.history,
        best_epoch=tuner.progress.best_epoch,
        seen=seen,
        prior=prior,
        validation_logits=held_out.all_logits(network, tokenizer.pad_token_id, prior) if held_out.size else None,
        device=str(tuner.args.device),
        steps_per_second=tuner.steps_per_second,
        samples_per_second=tuner.samples_per_second,
    )


def without_light_rows(title: str, train: pd.DataFrame, min_weight: float) -> pd.DataFrame:
    """Rows that weigh `min_weight` or more, and the lighter ones of classes with fewer than 30 such rows.

    Beside labels that somebody read for, thousands of hints cost an encoder most of its time and teach it the hints' mistakes.
    """
    _check_columns(title, "train", train)
    light = pd.to_numeric(train["weight"], errors="coerce") < min_weight
    heavy_rows = train.loc[~light, "label"].value_counts()
    dropped = light & train["label"].isin(heavy_rows.index[heavy_rows >= _ENOUGH_ROWS])
    if dropped.any():
        logger.info("%s: %d rows that weigh less than %g are left out", title, int(dropped.sum()), min_weight)
    return train[~dropped]


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
    if constants.is_offline_mode():
        raise EncoderUnavailableError(f"encoder {name}: {where}, not in the hub's cache, and HF_HUB_OFFLINE is set; {advice}")
    try:
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
    except errors.RepositoryNotFoundError as error:
        raise EncoderUnavailableError(
            f"encoder {name}: {where}, and {constants.ENDPOINT} has none of this name that may be read without logging in; "
            "check `checkpoint` in the candidates file, or run `hf auth login`"
        ) from error
    except Exception as error:  # whatever a missing network, a proxy or a mirror leads to
        raise EncoderUnavailableError(
            f"encoder {name}: {where}, not in the hub's cache, and {constants.ENDPOINT} cannot be reached ({error!r:.120}); "
            f"{advice}"
        ) from error
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
        with _quiet():
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
def _quiet() -> Iterator[None]:
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


def _check_length(title: str, params: EncoderParams, body: Any, tokenizer: Any) -> None:
    # Some encoders use a few of their positions for themselves; their tokenizers know.
    longest = min(getattr(body.config, "max_position_embeddings", None) or params.max_length, tokenizer.model_max_length)
    if params.max_length > longest:
        raise TrainingError(
            f"{title}: max_length: {params.checkpoint} reads at most {longest} tokens, found {params.max_length}; lower it"
        )


def _freeze_pooler(body: Any) -> None:
    """Our pooling does not use it; distributed training must not wait for its gradients."""
    pooler = getattr(body, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)


def _never_answer(network: EncoderNetwork, seen: Sequence[int]) -> None:
    """Give the outputs of classes without training rows a value that never wins."""
    import torch

    from reviewclf.training.losses import NEVER

    unseen = [column for column in range(network.head.out_features) if column not in set(seen)]
    with torch.no_grad():
        network.head.weight[unseen] = 0.0
        network.head.bias[unseen] = NEVER
