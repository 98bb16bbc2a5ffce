"""The loop of fine-tuning: Transformers' Trainer with our loss, order of rows, learning rates, and checkpoints.

A checkpoint is a folder of Trainer's own files, scratch of one job on one machine: it is never published, and read with
``weights_only``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this module is itself imported inside functions only
import transformers  # noqa: TID253
from pydantic import BaseModel, ValidationError
from torch import nn  # noqa: TID253
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.candidates import EncoderParams
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.encoder_rows import GroupedSampler, HeldOut, pad
from reviewclf.training.losses import cross_entropy, focal, symmetric_divergence

logger = logging.getLogger(__name__)

_JOB = "job.json"
_PROGRESS = "progress.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OURS = re.compile(r"checkpoint-\d+|best-\d+\.safetensors|job\.json|.*\.partial")

# From here on the states of all layers of a batch take more memory than recomputing them is worth: encoders above "base".
_BIG_ENCODER = 200_000_000
_LAYER = re.compile(r"(?:layers?|layer_groups|blocks?|h)\.(\d+)\.")


class _Progress(BaseModel):
    """What is known of a job beside Trainer's own state; its file is written last and makes a checkpoint complete.

    Attributes
    ----------
    history, best_epoch
        See :class:`TrainedEncoder`; 0: no epoch yet.
    finished : bool
        Nothing is left to train.
    loss_sum, rows, seconds : float
        Of the epoch that is under way.
    files : dict of str to int
        Bytes of each file of the checkpoint.
    """

    history: list[dict[str, float]] = []
    best_epoch: int = 0
    finished: bool = False
    loss_sum: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    files: dict[str, int] = {}


class Tuner(Trainer):
    """Trainer with our loss, order of rows, learning rates and checkpoints."""

    def __init__(
        self,
        title: str,
        params: EncoderParams,
        network: EncoderNetwork,
        rows: list[dict[str, Any]],
        held_out: HeldOut,
        *,
        seen: Sequence[int],
        pad_id: int,
        seed: int,
        tokenizer: Any,
        scratch: Path,
        keep: bool,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
    ) -> None:
        self.title = title
        self.params = params
        self.progress = _Progress()
        self.held_out = held_out
        self.pad_id = pad_id
        self.keep = keep
        self.on_epoch = on_epoch
        self.steps_done = self.rows_done = 0
        self.seconds_done = 0.0
        self._seen = list(seen)
        self._scratch = scratch
        self._best: dict[str, torch.Tensor] | None = None
        self._loss_sum = torch.zeros(())
        arguments = _arguments(title, params, seed=seed, scratch=scratch)
        self._recomputes = _set_gradient_checkpointing(title, params, network)
        multiple = 8 if arguments.bf16 or arguments.fp16 else 1  # the widths that tensor cores like

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            ids, mask = pad([row["ids"] for row in batch], pad_id, multiple)
            return {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": torch.tensor([row["label"] for row in batch]),
                "weights": torch.tensor([row["weight"] for row in batch], dtype=torch.float32),
            }

        super().__init__(
            model=network,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer,
            # With a loss of its own Trainer counts the rows of a whole step, all devices and accumulated batches included.
            compute_loss_func=self._row_losses,
            callbacks=[_Flow(self)],
        )
        self.remove_callback(PrinterCallback)

    @property
    def network(self) -> EncoderNetwork:
        """What is trained, without what several devices wrap around it."""
        return self.model  # type: ignore[return-value]

    @property
    def steps_per_second(self) -> float:
        """Of training alone, in this process."""
        return self.steps_done / self.seconds_done if self.seconds_done else 0.0

    @property
    def samples_per_second(self) -> float:
        """Rows of training alone, in this process."""
        return self.rows_done / self.seconds_done if self.seconds_done else 0.0

    def run(self) -> None:
        """Train to the end, from the last complete checkpoint if there is one; the network is then that of the best epoch."""
        if self.args.device.type == "cpu":
            logger.warning("%s: no GPU here: fine-tuning on the CPU with %d threads", self.title, torch.get_num_threads())
        last = self._take_up() if self.keep else None
        if not self.progress.finished:
            try:
                self.train(resume_from_checkpoint=str(last) if last else None)
            except torch.OutOfMemoryError as error:
                raise TrainingError(
                    f"{self.title}: {self.args.device} has too little memory; lower batch_size and raise gradient_accumulation "
                    "as much, or set gradient_checkpointing: on"
                ) from error
        network = self.network
        # Takes off what accelerate put on the network's forward.
        self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        vars(network).pop("forward", None)
        network.load_state_dict(self._best if self._best is not None else self._read_best())
        if self._recomputes:
            network.encoder.gradient_checkpointing_disable()
        network.to("cpu").eval().zero_grad(set_to_none=True)
        if self.keep:
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                _clear(self._scratch)
                with contextlib.suppress(OSError):  # something else lies there too
                    self._scratch.rmdir()

    # -- loss, order, learning rates

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted sum of the rows' losses over the number of rows of the step."""
        ids, mask, labels, weights = (inputs[name] for name in ("input_ids", "attention_mask", "labels", "weights"))
        if self.params.rdrop:
            # Both passes in one: the rows twice, under different dropout.
            both = model(input_ids=torch.cat([ids, ids]), attention_mask=torch.cat([mask, mask]))
            first, second = both.chunk(2)
            rows = (self._row_losses(first, labels) + self._row_losses(second, labels)) / 2
            rows = rows + self.params.rdrop * symmetric_divergence(first, second, seen=self._seen)
        else:
            rows = self._row_losses(model(input_ids=ids, attention_mask=mask), labels)
        total = (rows * weights).sum()
        self._loss_sum = self._loss_sum + total.detach()
        self.progress.rows += len(labels)
        self.rows_done += len(labels)
        # Gradients of several processes are averaged, hence the factor.
        return total / num_items_in_batch.reshape(-1)[0] * self.accelerator.num_processes

    def _row_losses(self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        smoothing = self.params.label_smoothing
        if self.params.loss == "focal":
            return focal(logits, labels, seen=self._seen, gamma=self.params.gamma, label_smoothing=smoothing)
        return cross_entropy(logits, labels, seen=self._seen, label_smoothing=smoothing)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        rows: Any = self.train_dataset
        lengths = [len(row["ids"]) for row in rows]
        return GroupedSampler(lengths, batch_size=self.args.train_batch_size, seed=self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each layer."""
        if self.optimizer is None:
            opened: Any = self.model if model is None else model
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, opened)
            decayed = set(self.get_decay_parameter_names(opened))
            named = [(name, parameter) for name, parameter in opened.named_parameters() if parameter.requires_grad]
            rates = layer_rates([name for name, _ in named], self.params.layer_decay)
            if self.params.layer_decay < 1 and len(set(rates.values())) <= 2:
                logger.warning("%s: layer_decay: no layers found in %s", self.title, self.params.checkpoint)
            groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for name, parameter in named:
                groups.setdefault((rates[name], name in decayed), []).append(parameter)
            self.optimizer = kind(
                [
                    {
                        "params": parameters,
                        "lr": self.params.learning_rate * rate,
                        "weight_decay": self.params.weight_decay if decays else 0.0,
                    }
                    for (rate, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
                ],
                **arguments,
            )
        return self.optimizer

    # -- epochs and checkpoints

    def finish_epoch(self, seconds: float, learning_rate: float) -> None:
        """Judge the epoch, keep the network if it is the best so far, and tell."""
        progress = self.progress
        totals = torch.stack([self._loss_sum, torch.tensor(float(progress.rows), device=self._loss_sum.device)])
        loss_sum, rows = self.accelerator.reduce(totals, reduction="sum").tolist()
        epoch = len(progress.history) + 1
        entry = {"epoch": float(epoch), "train_loss": loss_sum / rows, "learning_rate": learning_rate, "seconds": seconds}
        if not math.isfinite(entry["train_loss"]):
            raise TrainingError(
                f"{self.title}: the loss of epoch {epoch} is {entry['train_loss']}; lower learning_rate or set precision: fp32"
            )
        last = epoch == self.params.epochs
        if self.held_out.texts:
            entry |= self.held_out.scores(self.held_out.logits(self.network, self.pad_id), self._seen)
            best = progress.history[progress.best_epoch - 1]["weighted_f1"] if progress.best_epoch else -1.0
            better = entry["weighted_f1"] > best
        else:
            better = last
        progress.history.append(entry)
        if better:
            progress.best_epoch = epoch
            self._keep_best(epoch)
        patience = self.params.patience
        tired = bool(self.held_out.texts) and patience is not None and epoch - progress.best_epoch >= patience
        progress.finished = last or tired
        progress.rows, progress.seconds = 0, 0.0
        self._loss_sum = torch.zeros_like(self._loss_sum)
        scores = {name: round(value, 4) for name, value in entry.items() if name not in {"epoch", "learning_rate"}}
        logger.info("%s: epoch %d of %d: %s", self.title, epoch, self.params.epochs, scores)
        if self.on_epoch is not None and self.is_world_process_zero():
            self.on_epoch(epoch, dict(entry))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights alone: of settings and tokenizer the job knows already, and no pickle is needed for them."""
        from safetensors.torch import save_file

        if self.args.should_save:
            folder = Path(output_dir or self._scratch)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(_on_cpu(self.network), folder / "model.safetensors")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        progress = self.progress.model_copy(
            update={"loss_sum": float(self.accelerator.reduce(self._loss_sum.clone(), reduction="sum"))}
        )
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return
        folder = self._scratch / f"checkpoint-{self.state.global_step}"
        progress.files = {path.name: path.stat().st_size for path in folder.iterdir()}
        _write(folder / _PROGRESS, progress.model_dump_json())
        # Only now are the older ones of no use.
        keep = {folder.name, f"best-{progress.best_epoch}.safetensors", _JOB}
        _clear(self._scratch, keep=keep)

    def _keep_best(self, epoch: int) -> None:
        from safetensors.torch import save_file

        if not self.keep:
            self._best = {name: tensor.clone() for name, tensor in _on_cpu(self.network).items()}
        elif self.is_world_process_zero():
            path = self._scratch / f"best-{epoch}.safetensors"
            partial = path.with_name(f"{path.name}.partial")
            save_file(_on_cpu(self.network), partial)
            partial.replace(path)

    def _read_best(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        self.accelerator.wait_for_everyone()
        return load_file(self._scratch / f"best-{self.progress.best_epoch}.safetensors")

    def _take_up(self) -> Path | None:
        """Folder of the last complete checkpoint of this job, whose progress is taken over; all else is removed."""
        job = json.dumps({"job": self._digest()})
        last: Path | None = None
        path = self._scratch / _JOB
        if path.exists() and path.read_text(encoding="utf-8") == job:
            last = self._last_complete()
        elif self._scratch.exists() and any(self._scratch.iterdir()):
            logger.info("%s: %s: checkpoints of another job are removed", self.title, self._scratch)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            keep = {last.name, f"best-{self.progress.best_epoch}.safetensors"} if last else set()
            self._scratch.mkdir(parents=True, exist_ok=True)
            _clear(self._scratch, keep=keep)
            _write(path, job)
        self.accelerator.wait_for_everyone()
        if last is not None:
            done = len(self.progress.history)
            logger.info("%s: goes on from %s, after %d whole epochs", self.title, last, done)
        return last

    def _last_complete(self) -> Path | None:
        found = [(int(match[1]), path) for path in self._scratch.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
        for _, folder in sorted(found, reverse=True):
            try:
                progress = _Progress.model_validate_json((folder / _PROGRESS).read_bytes())
                sizes = {name: (folder / name).stat().st_size for name in progress.files}
            except (OSError, ValidationError):
                continue
            best = self._scratch / f"best-{progress.best_epoch}.safetensors"
            if sizes == progress.files and (not progress.best_epoch or best.exists()):
                self.progress = progress
                # The sum is that of all processes; one of them goes on with it.
                if self.is_world_process_zero():
                    self._loss_sum = torch.tensor(progress.loss_sum)
                return folder
        return None

    def _digest(self) -> str:
        """What decides what comes out: settings, rows, order, the weights to start from, the machine's kind."""
        digest = hashlib.sha256()
        # When it saves changes nothing.
        params = self.params.model_dump_json(exclude={"save_steps"})
        kind = [str(self.args.device), self.args.world_size, self.args.n_gpu, self.args.bf16, self.args.fp16]
        versions = [str(torch.__version__), transformers.__version__]
        content = [params, self.args.seed, self._seen, self.train_dataset, self.held_out.content(), kind, versions]
        digest.update(json.dumps(content).encode())
        for name, tensor in sorted(_on_cpu(self.network).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


class _Flow(TrainerCallback):
    """Says when Trainer judges, saves and stops."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._started = 0.0
        self._learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # One accumulator for all steps: reading the loss of each would wait for the device each time.
        self._tuner._loss_sum = self._tuner._loss_sum.to(args.device)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._learning_rate = max(group["lr"] for group in known["optimizer"].param_groups)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tuner = self._tuner
        tuner.steps_done += 1
        steps = state.max_steps // tuner.params.epochs
        # At the end of an epoch the checkpoint must hold what the epoch was worth, so that one comes later.
        if tuner.keep and state.global_step % tuner.params.save_steps == 0 and state.global_step % steps:
            self._count_time()
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tuner = self._tuner
        if tuner.args.device.type == "cuda":
            torch.cuda.synchronize()
        self._count_time()
        tuner.finish_epoch(tuner.progress.seconds, self._learning_rate)
        control.should_save = tuner.keep
        control.should_training_stop = tuner.progress.finished

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._tuner.progress.seconds += now - self._started
        self._tuner.seconds_done += now - self._started
        self._started = now


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


def _arguments(title: str, params: EncoderParams, *, seed: int, scratch: Path) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    precision = params.precision
    if precision == "auto":
        if cuda:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            precision = "bf16" if _cpu_has_bf16() else "fp32"
    if precision == "fp16" and not cuda:
        raise TrainingError(f"{title}: precision: fp16 needs a GPU, and there is none here; set it to auto")
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation,
        num_train_epochs=params.epochs,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_ratio,  # below 1 it is a share
        lr_scheduler_type=params.scheduler,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=precision == "bf16" and not cuda,  # else Trainer takes it for a mistake
        seed=seed,
        # _Flow says when.
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        ignore_data_skip=False,
        report_to="none",
        disable_tqdm=True,
    )


def _cpu_has_bf16() -> bool:
    """Whether this processor multiplies 16-bit matrices itself; where it does not, they are slower than 32-bit ones."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


def _set_gradient_checkpointing(title: str, params: EncoderParams, network: EncoderNetwork) -> bool:
    """Whether the encoder now recomputes its states in the backward pass."""
    body = network.encoder
    big = sum(parameter.numel() for parameter in body.parameters()) > _BIG_ENCODER
    if params.gradient_checkpointing == "off" or (params.gradient_checkpointing == "auto" and not big):
        return False
    if getattr(body, "supports_gradient_checkpointing", False):
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return True
    if params.gradient_checkpointing == "on":
        raise TrainingError(f"{title}: gradient_checkpointing: {params.checkpoint} cannot do it; set it to auto")
    return False


def _on_cpu(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def _clear(folder: Path, keep: set[str] | frozenset[str] = frozenset()) -> None:
    """Remove what training left in a folder, and nothing that anybody else put there."""
    for path in folder.iterdir():
        if path.name in keep or not _OURS.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
