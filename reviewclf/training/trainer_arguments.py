"""Transformers' arguments for a candidate's settings, as far as this machine goes."""

from __future__ import annotations

from pathlib import Path

import torch  # noqa: TID253 - this module is itself imported inside functions only
from transformers import TrainingArguments  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.encoder_params import EncoderParams

# From here on the states of all layers of a batch take more memory than recomputing them is worth: encoders above "base".
_BIG_ENCODER = 200_000_000


def trainer_arguments(title: str, params: EncoderParams, *, seed: int, folder: Path, validates: bool) -> TrainingArguments:
    """The arguments of Trainer.

    Raises
    ------
    TrainingError
        The precision asked for needs a GPU.
    """
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
        output_dir=str(folder),
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=64,
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
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if validates else "no",
        save_strategy="epoch",
        save_total_limit=1,  # beside the best
        load_best_model_at_end=validates,
        metric_for_best_model="weighted_f1" if validates else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=cuda,
        report_to="none",
        disable_tqdm=True,
    )


def _cpu_has_bf16() -> bool:
    """Whether this processor multiplies 16-bit matrices itself; where it does not, they are slower than 32-bit ones."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


def set_gradient_checkpointing(title: str, params: EncoderParams, network: EncoderNetwork) -> bool:
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
