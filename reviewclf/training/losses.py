"""Losses of fine-tuning. All of them answer one number a row, so that rows can weigh as sure as their labels are."""

from __future__ import annotations

from collections.abc import Sequence

import torch  # noqa: TID253 - this module is itself imported inside functions only
from torch.nn import functional  # noqa: TID253

# Bias of the outputs of classes without a training row. Their probability is then 0 exactly, in half precision too, and no
# product with 0 becomes NaN as with an infinity.
NEVER = -1e4


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, *, seen: Sequence[int], label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of each row.

    Parameters
    ----------
    logits : tensor, shape (n, k)
    target : tensor of int64, shape (n,)
    seen : sequence of int
        Classes with training rows, ascending; the others take no part.
    label_smoothing : float
        Share of the target that is spread evenly over all classes in `seen` (Szegedy et al., Rethinking the Inception
        Architecture for Computer Vision, 2016).

    Returns
    -------
    tensor, shape (n,)
    """
    columns = torch.as_tensor(list(seen), device=logits.device)
    place = torch.searchsorted(columns, target)
    return functional.cross_entropy(logits.float()[:, columns], place, reduction="none", label_smoothing=label_smoothing)


def focal(
    logits: torch.Tensor, target: torch.Tensor, *, seen: Sequence[int], gamma: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Focal loss of each row: cross-entropy times (1 - p) ** gamma, where p is the probability of the true class.

    Rows that are right already count less (Lin et al., Focal Loss for Dense Object Detection, 2017). The paper's alpha is a
    weight of the row's class, see :func:`reviewclf.training.rows.class_weights`. With gamma 0 this is :func:`cross_entropy`.

    Parameters
    ----------
    logits, target, seen, label_smoothing
        See :func:`cross_entropy`.
    gamma : float
        At least 0.

    Returns
    -------
    tensor, shape (n,)
    """
    loss = cross_entropy(logits, target, seen=seen, label_smoothing=label_smoothing)
    if not gamma:
        return loss
    missing = -torch.expm1(-cross_entropy(logits, target, seen=seen))
    # The slope of x ** gamma is infinite at 0 for gamma below 1.
    return missing.clamp(min=1e-6) ** gamma * loss


def symmetric_divergence(first: torch.Tensor, second: torch.Tensor, *, seen: Sequence[int]) -> torch.Tensor:
    """Mean of KL(first || second) and KL(second || first) of each row.

    R-Drop (Liang et al., R-Drop: Regularized Dropout for Neural Networks, 2021) adds alpha times this to the loss, for two
    passes of the same rows under different dropout.

    Parameters
    ----------
    first, second : tensor, shape (n, k)
        Logits.
    seen : sequence of int
        See :func:`cross_entropy`.

    Returns
    -------
    tensor, shape (n,)
    """
    one, two = (functional.log_softmax(logits.float()[:, list(seen)], dim=1) for logits in (first, second))
    # KL(p || q) + KL(q || p) = sum of (p - q)(log p - log q).
    return 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(dim=1)
