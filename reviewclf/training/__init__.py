"""Candidates, their training, and the classifiers that come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from reviewclf.training.candidates import Candidate, EncoderCandidate
    from reviewclf.training.model import TextClassifier

# Reviews on which an exported network is compared with the trained one.
_VERIFY_TEXTS = 600


def train_candidate(
    candidate: Candidate,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    classes: Sequence[str],
    stems: Mapping[str, list[str]] | None = None,
    seed: int,
    encoders: Path | None = None,
    checkpoints: Path | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> TextClassifier:
    """Train one entry of the candidates file, whatever its kind.

    Parameters
    ----------
    candidate : Candidate
        From :func:`reviewclf.training.candidates.load_candidates`.
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``; choices are made on `validation`, which may be empty.
    classes : sequence of str
        All categories, in the order wanted for probabilities.
    stems : mapping of str to list of str, optional
        Keyword stems by category, for the kinds that use them.
    seed : int
        Of all randomness.
    encoders : Path, optional
        Folder of local checkpoints that stand in for the hub.
    checkpoints : Path, optional
        Scratch folder from which a killed fine-tuning goes on.
    on_epoch : callable, optional
        Told the epoch, from 1, and its figures, by the kinds that have epochs.

    Raises
    ------
    EncoderUnavailableError
        The candidate's pretrained encoder cannot be had here.
    TrainingError
        The rows cannot be trained on, or the candidate's settings do not work out.
    """
    # One branch a kind, each importing what only it needs.
    if candidate.kind == "encoder":
        return _train_encoder(
            candidate, train, validation, classes, seed=seed, encoders=encoders, checkpoints=checkpoints, on_epoch=on_epoch
        )
    if candidate.kind == "frozen-encoder":
        from reviewclf.training.encoder import resolve_checkpoint
        from reviewclf.training.frozen import train_frozen

        checkpoint = resolve_checkpoint(candidate.params.checkpoint, encoders)
        return train_frozen(candidate, train, validation, classes=classes, stems=stems, seed=seed, checkpoint=checkpoint)
    from reviewclf.training.linear import train_linear

    return train_linear(candidate, train, validation, classes=classes, stems=stems, seed=seed)


def check_available(candidate: Candidate, encoders: Path | None) -> None:
    """Whether a candidate can be trained here.

    Raises
    ------
    EncoderUnavailableError
        Its pretrained encoder, or the GPU that it asks for, is missing; the message says how to get it.
    """
    if candidate.kind == "linear":
        return
    from reviewclf.errors import EncoderUnavailableError
    from reviewclf.training.encoder import resolve_checkpoint

    resolve_checkpoint(candidate.params.checkpoint, encoders)
    if candidate.kind == "encoder" and candidate.params.needs_gpu:
        import torch

        if not torch.cuda.is_available():
            raise EncoderUnavailableError(
                f"encoder {candidate.params.checkpoint}: no GPU here, and `needs_gpu` is set in the candidates file; train it "
                "on a worker that has one (REVIEWCLF_TRAINING__GPU=true), or set needs_gpu: false and wait longer"
            )


def _train_encoder(
    candidate: EncoderCandidate,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    encoders: Path | None,
    checkpoints: Path | None,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
) -> TextClassifier:
    import numpy as np

    from reviewclf.errors import TrainingError
    from reviewclf.training.encoder import TrainedEncoder, train_encoder
    from reviewclf.training.encoder_classifier import EncoderClassifier
    from reviewclf.training.search import search

    def fit(tried: EncoderCandidate, scratch: Path | None) -> tuple[float, TrainedEncoder]:
        result = train_encoder(
            tried,
            train,
            validation,
            classes=classes,
            seed=seed,
            encoders=encoders,
            checkpoints=scratch,
            # The epochs of trials would mix with each other; those of the best are told at the end.
            on_epoch=None if candidate.params.search else on_epoch,
        )
        return max((entry.get("weighted_f1", 0.0) for entry in result.history), default=0.0), result

    trials: list[dict[str, float]] = []
    if candidate.params.search is None:
        _, trained = fit(candidate, checkpoints)
    elif validation.empty:
        raise TrainingError(f"candidate {candidate.name}: search: there are no validation rows to choose by; take it out")
    else:
        candidate, trained, trials = search(candidate, fit, seed=seed, scratch=checkpoints)
    logits = trained.validation_logits if trained.validation_logits is not None else np.empty((0, len(classes)))
    texts = [*validation["text_clean"], *train["text_clean"]][:_VERIFY_TEXTS]
    chosen = {
        **candidate.params.model_dump(mode="json", exclude={"search"}),
        "best_epoch": trained.best_epoch,
        "device": trained.device,
    }
    classifier = EncoderClassifier.from_network(
        trained.network,
        trained.tokenizer,
        classes=classes,
        seen=trained.seen,
        prior=trained.prior,
        candidate=candidate.model_dump(mode="json"),
        chosen=chosen,
        verify_texts=texts,
        validation_logits=logits,
        validation_labels=validation["label"].tolist(),
        max_length=candidate.params.max_length,
    )
    classifier.history = trained.history
    classifier.trials = trials
    classifier.figures = {
        "steps_per_second": trained.steps_per_second,
        "samples_per_second": trained.samples_per_second,
    }
    return classifier
