"""The loop of fine-tuning: Transformers' Trainer with our losses, learning rates and order of rows.

Trainer evaluates, keeps the best epoch, stops early, saves, and goes on from what it saved. Its checkpoints are scratch of one
job on one machine: they are never published, and read with ``weights_only``.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is itself imported inside functions only
from torch import nn  # noqa: TID253
from transformers import (  # noqa: TID253
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_pt_utils import LengthGroupedSampler  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.losses import cross_entropy, focal, symmetric_divergence
from reviewclf.training.rows import TrainingJob
from reviewclf.training.scratch import last_complete
from reviewclf.training.trainer_arguments import set_gradient_checkpointing, trainer_arguments

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"(?:layers?|layer_groups|blocks?|h)\.(\d+)\.")


class Tuner(Trainer):
    """Trainer with our losses, learning rates and order of rows.

    Parameters
    ----------
    title : str
        What messages begin with.
    examples, held_out : list of dict
        Rows to train and to validate on: ``input_ids``, ``labels`` and ``weights``; the latter may be empty.
    seen : list of int
        Positions of the classes with training rows.
    folder : Path
        Where checkpoints are kept. Training goes on from the last complete one.
    job : TrainingJob
        Whose seed it takes, and whom it tells of each epoch.
    """

    def __init__(
        self,
        title: str,
        params: EncoderParams,
        network: EncoderNetwork,
        tokenizer: Any,
        examples: list[dict[str, Any]],
        held_out: list[dict[str, Any]],
        seen: Sequence[int],
        *,
        folder: Path,
        job: TrainingJob,
    ) -> None:
        self.title, self.params = title, params
        self.since = 0.0
        self._seen, self._tell = seen, job.on_epoch
        arguments = trainer_arguments(title, params, seed=job.seed, folder=folder, validates=bool(held_out))
        self._recomputes = set_gradient_checkpointing(title, params, network)
        stop_early = [_EarlyStopping(params.patience)] if held_out and params.patience else []
        super().__init__(
            model=network,
            args=arguments,
            train_dataset=examples,
            eval_dataset=held_out or None,
            # A multiple of 8 is the width that tensor cores like.
            data_collator=DataCollatorWithPadding(
                tokenizer, pad_to_multiple_of=8 if arguments.bf16 or arguments.fp16 else None
            ),
            # With a loss of its own Trainer counts the rows of a whole step, all devices and accumulated batches included.
            compute_loss_func=self._row_losses,
            compute_metrics=self._scores,
            callbacks=[_Flow(self), *stop_early],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> dict[str, float]:
        """Train to the end; the network is then that of the best epoch. Returns steps and samples per second."""
        if self.args.device.type == "cpu":
            logger.warning("%s: no GPU here: fine-tuning on the CPU with %d threads", self.title, torch.get_num_threads())
        last = last_complete(Path(str(self.args.output_dir)))
        if last is not None:
            logger.info("%s: goes on from %s", self.title, last)
        try:
            metrics = self.train(resume_from_checkpoint=None if last is None else str(last)).metrics
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.title}: {self.args.device} has too little memory; lower batch_size and raise gradient_accumulation "
                "as much, or set gradient_checkpointing: on"
            ) from error
        network: Any = self.model
        # Takes off what accelerate put on the network's forward.
        self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        vars(network).pop("forward", None)
        if self._recomputes:
            network.encoder.gradient_checkpointing_disable()
        network.to("cpu").eval().zero_grad(set_to_none=True)
        self.accelerator.wait_for_everyone()
        return {name: metrics[f"train_{name}"] for name in ("steps_per_second", "samples_per_second")}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted sum of the rows' losses over the number of rows of the step."""
        ids, mask, labels, weights = (inputs[name] for name in ("input_ids", "attention_mask", "labels", "weights"))
        if not model.training:
            # Evaluation has scores of its own, and rows of classes that are never trained.
            logits = model(input_ids=ids, attention_mask=mask)
            return logits.new_zeros(()), {"logits": logits}
        if self.params.rdrop:
            # Both passes in one: the rows twice, under different dropout.
            logits, second = model(input_ids=torch.cat([ids, ids]), attention_mask=torch.cat([mask, mask])).chunk(2)
            rows = (self._row_losses(logits, labels) + self._row_losses(second, labels)) / 2
            rows = rows + self.params.rdrop * symmetric_divergence(logits, second, seen=self._seen)
        else:
            logits = model(input_ids=ids, attention_mask=mask)
            rows = self._row_losses(logits, labels)
        # Gradients of several processes are averaged, hence the factor.
        return (rows * weights).sum() / num_items_in_batch.reshape(-1)[0] * self.accelerator.num_processes

    def _row_losses(self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        smoothing = self.params.label_smoothing
        if self.params.loss == "focal":
            return focal(logits, labels, seen=self._seen, gamma=self.params.gamma, label_smoothing=smoothing)
        return cross_entropy(logits, labels, seen=self._seen, label_smoothing=smoothing)

    def _scores(self, answers: EvalPrediction) -> dict[str, float]:
        """Loss, without weights and without rows of unseen classes, and F1."""
        from sklearn.metrics import f1_score

        logits, labels = torch.as_tensor(answers.predictions).float(), np.asarray(answers.label_ids)
        known = np.isin(labels, self._seen)
        losses = cross_entropy(logits[known], torch.as_tensor(labels)[known], seen=self._seen)
        predicted = np.array(self._seen)[logits[:, self._seen].argmax(dim=1)]
        options: dict[str, Any] = {"labels": np.unique(labels), "zero_division": 0}
        return {
            "validation_loss": float(losses.mean()),
            "weighted_f1": float(f1_score(labels, predicted, average="weighted", **options)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", **options)),
        }

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        rows: Any = self.train_dataset
        lengths = [len(row["input_ids"]) for row in rows]
        return SeededLengthGroups(self.args.train_batch_size, lengths, seed=self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each layer."""
        if self.optimizer is None:
            opened: Any = self.model if model is None else model
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, opened)
            decayed = set(self.get_decay_parameter_names(opened))
            named = {name: parameter for name, parameter in opened.named_parameters() if parameter.requires_grad}
            rates = layer_rates(list(named), self.params.layer_decay)
            if self.params.layer_decay < 1 and len(set(rates.values())) <= 2:
                logger.warning("%s: layer_decay: no layers found in %s", self.title, self.params.checkpoint)
            groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in named.items():
                groups[rates[name], self.params.weight_decay if name in decayed else 0.0].append(parameter)
            self.optimizer = kind(
                [
                    {"params": parameters, "lr": self.params.learning_rate * rate, "weight_decay": decay}
                    for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
                ],
                **arguments,
            )
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also log the seconds of training, and tell each epoch once all is known of it."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                epoch = math.ceil(self.state.epoch or 0.0)
                raise TrainingError(
                    f"{self.title}: the loss of epoch {epoch} is {logs['loss']}; lower learning_rate or set precision: fp32"
                )
            logs["seconds"] = time.perf_counter() - self.since
        super().log(logs, start_time)
        ends_epoch = "loss" in logs and float(self.state.epoch or 0.0).is_integer()
        if "eval_loss" in logs or (ends_epoch and self.eval_dataset is None):
            entry = epochs_of(self.state.log_history)[-1]
            logger.info("%s: epoch %d of %d: %s", self.title, entry["epoch"], self.params.epochs, entry)
            if self._tell is not None and self.is_world_process_zero():
                self._tell(int(entry["epoch"]), entry)


class SeededLengthGroups(LengthGroupedSampler):
    """Rows of similar length together; the batches come in a random order, which a resumed training finds again.

    Transformers' own order goes from long to short reviews, in a small dataset through the whole epoch.
    """

    def __init__(self, batch_size: int, lengths: list[int], *, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the data loader calls it before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(int(np.random.SeedSequence([self._seed, self._epoch]).generate_state(1)[0]))
        order = torch.tensor(list(super().__iter__()))  # type: ignore[no-untyped-call]
        # A batch that is not full goes last: elsewhere it would shift all that follow.
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].view(-1, self.batch_size)
        mixed = batches[torch.randperm(len(batches), generator=self.generator)]
        yield from [*mixed.flatten().tolist(), *order[whole:].tolist()]


class _Flow(TrainerCallback):
    """Checkpoints in the middle of epochs, and the clock."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tuner.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = state.max_steps // state.num_train_epochs
        # What was lost up to a checkpoint is logged with it, so that a resumed training knows it.
        if state.global_step % self._tuner.params.save_steps == 0 and state.global_step % steps:
            control.should_log = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tuner.since = time.perf_counter()


class _EarlyStopping(EarlyStoppingCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **known: Any) -> None:  # type: ignore[override]
        super().on_evaluate(args, state, control, **known)  # type: ignore[no-untyped-call]
        # Trainer would train on from a checkpoint of here.
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_save = False


def epochs_of(logs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """History of a training, one entry an epoch, from Trainer's log, in which an epoch may have several losses."""
    history: list[dict[str, float]] = []
    before = 0.0
    for log in logs:
        if "loss" in log:
            epoch = float(math.ceil(log["epoch"]))
            if not history or history[-1]["epoch"] != epoch:
                history.append({"epoch": epoch, "train_loss": 0.0, "seconds": 0.0})
                begin = before
            entry = history[-1]
            entry["train_loss"] += (log["loss"] - entry["train_loss"]) * (log["step"] - before) / (log["step"] - begin)
            entry["seconds"] += log["seconds"]
            entry["learning_rate"] = log["learning_rate"]
            before = log["step"]
        elif "eval_loss" in log:
            history[-1] |= {name: log[f"eval_{name}"] for name in ("validation_loss", "weighted_f1", "macro_f1")}
    return history


def layer_rates(names: Sequence[str], decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter of an :class:`EncoderNetwork`.

    Layer-wise learning-rate decay (Sun et al., How to Fine-Tune BERT for Text Classification?, 2019): 1 for the head and what
    stands above the layers, `decay` for the last layer, its square for the one below, and so on; the embeddings come last.
    """
    depths = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    layers = 1 + max(depths.values(), default=-1)

    def rate(name: str) -> float:
        if name in depths:
            return float(decay ** (layers - depths[name]))
        return float(decay ** (layers + 1)) if "embed" in name else 1.0

    return {name: rate(name) for name in names}
