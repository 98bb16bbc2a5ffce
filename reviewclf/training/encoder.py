"""Candidates that fine-tune a pretrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from reviewclf.errors import EncoderUnavailableError, TrainingError
from reviewclf.training.candidates import Candidate
from reviewclf.training.checkpoints import resolve_checkpoint
from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.model import TextClassifier
from reviewclf.training.rows import TrainingJob
from reviewclf.training.search import search


class EncoderCandidate(Candidate):
    """A pretrained encoder that is fine-tuned."""

    fine_tunes: ClassVar[bool] = True

    params: EncoderParams

    @classmethod
    def classifier(cls) -> type[TextClassifier]:
        """See :class:`reviewclf.training.candidates.Candidate`."""
        from reviewclf.training.encoder_classifier import EncoderClassifier

        return EncoderClassifier

    def check_available(self, encoders: Path | None) -> None:
        """Whether the checkpoint is to be had, and the GPU here if it has to be."""
        resolve_checkpoint(self.params.checkpoint, encoders)
        if self.params.needs_gpu:
            import torch

            if not torch.cuda.is_available():
                raise EncoderUnavailableError(
                    f"encoder {self.params.checkpoint}: no GPU here, and `needs_gpu` is set in the candidates file; train it "
                    "on a worker that has one (REVIEWCLF_TRAINING__GPU=true), or set needs_gpu: false and wait longer"
                )

    def train(self, job: TrainingJob) -> TextClassifier:
        """Fine-tune, once or as often as ``search`` says, then export and calibrate on validation."""
        from reviewclf.training.encoder_classifier import EncoderClassifier
        from reviewclf.training.finetuning import fine_tune

        params = self.params
        trials: list[dict[str, float]] = []
        if params.search is None:
            tuned = fine_tune(self.title, params, job)
        elif job.validation.empty:
            raise TrainingError(f"{self.title}: search: there are no validation rows to choose by; take it out")
        else:
            params, tuned, trials = search(self.title, params, fine_tune, job)
        settings = params.model_dump(mode="json", exclude={"search"})
        classifier = EncoderClassifier.from_network(
            tuned.network,
            tuned.tokenizer,
            texts=[*job.validation["text_clean"], *tuned.rows.texts],
            max_length=params.max_length,
            chosen={**settings, "best_epoch": tuned.best_epoch, "device": tuned.device},
            **self.model_copy(update={"params": params}).common(job, tuned.rows),
        )
        classifier.calibrate(job.validation, scale=True)
        classifier.history, classifier.trials, classifier.figures = tuned.history, trials, tuned.figures
        return classifier
