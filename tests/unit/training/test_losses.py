"""Losses of fine-tuning against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from reviewclf.training.losses import cross_entropy, focal, symmetric_divergence
from reviewclf.training.rows import class_weights

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 4.0, 1.0]])
TARGET = torch.tensor([0, 2, 0])
ALL = [0, 1, 2]


def _true(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, 1)[torch.arange(len(target)), target]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    target = np.array([0, 0, 0, 2, 2, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=target)
    found = class_weights(target, np.ones(6), classes=5, power=1.0)
    assert found == pytest.approx([expected[0], 0, expected[1], expected[2], 0])
    assert class_weights(target, np.ones(6), classes=5, power=0.0).tolist() == [1, 0, 1, 1, 0]
    half = class_weights(target, np.ones(6), classes=5, power=0.5)
    assert half == pytest.approx(np.sqrt(found))


def test_class_weights_count_rows_by_how_sure_they_are() -> None:
    target = np.array([0, 0, 1])
    assert class_weights(target, np.array([0.25, 0.25, 0.5]), classes=2, power=1.0).tolist() == [1.0, 1.0]


def test_cross_entropy_is_that_of_torch() -> None:
    for smoothing in (0.0, 0.2):
        expected = torch.nn.functional.cross_entropy(LOGITS, TARGET, reduction="none", label_smoothing=smoothing)
        assert cross_entropy(LOGITS, TARGET, seen=ALL, label_smoothing=smoothing) == pytest.approx(expected)


def test_unseen_classes_take_no_part() -> None:
    seen, target = [0, 2], torch.tensor([0, 2, 0])
    logits = LOGITS.clone().requires_grad_()
    for smoothing in (0.0, 0.3):
        found = cross_entropy(logits, target, seen=seen, label_smoothing=smoothing)
        two = torch.nn.functional.cross_entropy(
            LOGITS[:, seen], torch.tensor([0, 1, 0]), reduction="none", label_smoothing=smoothing
        )
        assert found.detach() == pytest.approx(two)
    (found.sum() + focal(logits, target, seen=seen, gamma=2.0).sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, 1].tolist() == [0, 0, 0]
    assert logits.grad[:, 0].abs().min() > 0


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_its_formula(gamma: float) -> None:
    probability = _true(LOGITS, TARGET)
    assert focal(LOGITS, TARGET, seen=ALL, gamma=gamma) == pytest.approx(-((1 - probability) ** gamma) * probability.log())


def test_focal_loss_without_gamma_is_cross_entropy() -> None:
    expected = cross_entropy(LOGITS, TARGET, seen=ALL, label_smoothing=0.1)
    assert torch.equal(focal(LOGITS, TARGET, seen=ALL, gamma=0.0, label_smoothing=0.1), expected)


def test_focal_loss_cares_less_for_rows_that_are_right() -> None:
    sure, unsure = torch.tensor([[6.0, 0.0]]), torch.tensor([[0.2, 0.0]])
    target = torch.tensor([0])

    def share(logits: torch.Tensor) -> float:
        return float(focal(logits, target, seen=[0, 1], gamma=2.0) / cross_entropy(logits, target, seen=[0, 1]))

    assert share(sure) < 0.001 < 0.1 < share(unsure)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_gradients_stay_finite_where_the_answer_is_sure(gamma: float) -> None:
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    focal(logits, torch.tensor([0, 0]), seen=[0, 1], gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_divergence_is_the_mean_of_both_directions() -> None:
    other = LOGITS.flip(0)
    one, two = torch.log_softmax(LOGITS, 1), torch.log_softmax(other, 1)
    forth = torch.nn.functional.kl_div(two, one, reduction="none", log_target=True).sum(1)
    back = torch.nn.functional.kl_div(one, two, reduction="none", log_target=True).sum(1)
    assert symmetric_divergence(LOGITS, other, seen=ALL) == pytest.approx((forth + back) / 2)
    assert symmetric_divergence(LOGITS, LOGITS, seen=ALL).tolist() == [0, 0, 0]
    unlike_in_unseen = LOGITS + torch.tensor([0.0, 7.0, 0.0])
    assert symmetric_divergence(LOGITS, unlike_in_unseen, seen=[0, 2]).tolist() == [0, 0, 0]


def test_half_precision_logits_are_taken_in_full_precision() -> None:
    logits = LOGITS.bfloat16()
    for loss in (cross_entropy(logits, TARGET, seen=ALL), focal(logits, TARGET, seen=ALL, gamma=2.0)):
        assert loss.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(0, 5), st.floats(0, 0.9), st.integers(0, 10_000))
def test_losses_are_finite_and_not_negative(rows: int, classes: int, gamma: float, smoothing: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 30, (rows, classes)))
    seen = sorted(random.choice(classes, size=random.integers(1, classes + 1), replace=False).tolist())
    target = torch.from_numpy(random.choice(seen, size=rows))
    for loss in (
        cross_entropy(logits, target, seen=seen, label_smoothing=smoothing),
        focal(logits, target, seen=seen, gamma=gamma, label_smoothing=smoothing),
        symmetric_divergence(logits, logits.flip(0), seen=seen),
    ):
        assert loss.shape == (rows,)
        assert torch.isfinite(loss).all()
        assert (loss >= 0).all()
