"""Settings of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reviewclf.training.candidates import ClassWeightPower, Strict
from reviewclf.training.checkpoints import CheckpointName, Pooling

# Not for a search: what is trained, and how it is kept.
_FIXED = {"checkpoint", "search", "needs_gpu", "save_steps"}


class Range(Strict):
    """Numbers between two bounds, both included."""

    low: float
    high: float
    log: bool = Field(False, description="small values as often as large ones")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low:g} has to be below high {self.high:g}, and above 0 with log")
        return self


class EncoderSearch(Strict):
    """Trials with varied settings, chosen by Optuna's tree-structured Parzen estimator by weighted F1 on validation.

    Attributes
    ----------
    space : dict
        Setting of the candidate to a list of values, or to ``{low, high, log}``.
    """

    trials: Annotated[int, Field(ge=2, le=200)] = 10
    space: Annotated[dict[str, Range | Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]

    def distributions(self) -> dict[str, Any]:
        """What Optuna draws from."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            name: FloatDistribution(values.low, values.high, log=values.log)
            if isinstance(values, Range)
            else CategoricalDistribution(values)
            for name, values in self.space.items()
        }


class EncoderParams(Strict):
    """How one pretrained encoder is fine-tuned. The defaults are those of the notebook that the project grew from.

    Attributes
    ----------
    layer_decay : float
        Layer-wise learning-rate decay (Sun et al., How to Fine-Tune BERT for Text Classification?, 2019): each layer learns at
        this times the rate of the layer above it.
    rdrop : float
        Alpha of R-Drop (Liang et al., 2021): two passes under different dropout shall agree.
    """

    checkpoint: CheckpointName
    loss: Literal["weighted_ce", "focal"] = "weighted_ce"
    gamma: NonNegativeFloat = Field(2.0, description="of the focal loss: how little rows count that are right already")
    alpha: bool = Field(True, description="of the focal loss: whether classes weigh by class_weight_power")
    class_weight_power: ClassWeightPower = 1.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = Field(8, description="reviews a device works on at once")
    gradient_accumulation: PositiveInt = Field(2, description="batches that make one step")
    epochs: PositiveInt = 7
    weight_decay: NonNegativeFloat = 0.01
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="share of all steps until the full rate")
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_length: Annotated[int, Field(ge=4)] = Field(128, description="tokens after which a review is cut off")
    pooling: Pooling = "mean"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="before the last layer; the encoder has its own")
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="1: all layers learn at the same rate")
    rdrop: NonNegativeFloat = Field(0.0, description="0: off; else two passes a step, so it takes twice as long")
    patience: PositiveInt | None = Field(2, description="epochs without a better weighted F1 on validation; null: run them all")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field("auto", description="less memory, slower; auto: if big")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 or fp16 if GPU or CPU have it")
    min_weight: NonNegativeFloat = Field(
        0.1, description="rows that weigh less, such as hints by stems, are left out where their class has 30 others"
    )
    needs_gpu: bool = Field(False, description="skipped on machines without a GPU, where it would take hours")
    save_steps: PositiveInt = Field(500, description="a checkpoint every so many steps, beside the one at each epoch's end")
    search: EncoderSearch | None = Field(None, description="several trials in place of one; takes as many times as long")

    @model_validator(mode="after")
    def _search_is_valid(self) -> Self:
        known = sorted(set(EncoderParams.model_fields) - _FIXED)
        unknown = sorted(set(self.search.space) - set(known)) if self.search is not None else []
        if unknown:
            raise ValueError(f"search: no setting {', '.join(unknown)} to vary; there are {', '.join(known)}")
        return self
