"""Losses and their gradients; PyTorch is the oracle."""

import numpy as np
import pytest

from fastconv import Tensor, nn
from fastconv.testing import check_grads
from tests.support import require

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spatial", [(), (2, 3)])
def test_cross_entropy_is_pytorchs(reduction, label_smoothing, spatial):
    torch = require("torch")
    data, labels = normal(6, 5, *spatial) * 4, RNG.integers(0, 5, (6, *spatial))
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    x, tx = Tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    loss = nn.CrossEntropyLoss(**options)(x, labels)
    expected = torch.nn.functional.cross_entropy(tx, torch.tensor(labels), **options)
    close(loss.numpy(), expected.detach().numpy())
    assert loss.dtype == np.float32
    loss.sum().backward(), expected.sum().backward()
    close(x.grad, tx.grad.numpy())
    close(nn.cross_entropy(data, labels, **options), expected.detach().numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_losses(reduction):
    labels = RNG.integers(0, 4, 6)
    x, target = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4))
    check_grads(lambda x: nn.cross_entropy(x, labels, reduction=reduction, label_smoothing=0.2), x)
    check_grads(lambda x: nn.nll_loss(nn.log_softmax(x), labels, reduction=reduction), x)
    check_grads(lambda x, t: nn.mse_loss(x, t, reduction=reduction), x, target)
    check_grads(lambda x, t: nn.l1_loss(x, t, reduction=reduction), x, target)
    check_grads(lambda x: nn.softmax(x, 0), x)
    check_grads(lambda x: nn.log_softmax(x, 1), x)


def test_losses_agree():
    x, labels = normal(6, 4), RNG.integers(0, 4, 6)
    close(nn.cross_entropy(x, labels), nn.nll_loss(nn.log_softmax(x, 1), labels))
    close(nn.cross_entropy(x, Tensor(labels)), nn.cross_entropy(x, labels.astype(np.uint8)))
    close(nn.cross_entropy(x, list(labels)), nn.cross_entropy(x, labels))
    close(nn.softmax(x), np.exp(nn.log_softmax(x)))
    assert nn.MSELoss(reduction="sum")(x, x) == nn.l1_loss(x, x) == 0


def test_losses_of_extreme_logits_are_finite():
    x = Tensor(np.array([[1e4, -1e4, 0], [-1e4, -1e4, 1e4]], np.float32), requires_grad=True)
    loss = nn.cross_entropy(x, np.array([0, 1]))
    assert loss.item() == 1e4
    loss.backward()
    assert x.grad.tolist() == [[0, 0, 0], [0, -0.5, 0.5]]


def test_wrong_labels_are_named():
    x = normal(3, 4)
    for labels, error, message in (
        ([0, 1, 4], ValueError, "labels must be between 0 and 3 for 4 classes, got 4"),
        ([0, -1, 3], ValueError, "labels must be between 0 and 3 for 4 classes, got -1"),
        ([0.0, 1.0, 2.0], TypeError, r"labels must be integers \(class numbers\), got float64"),
        ([True, False, True], TypeError, "got bool"),
        ([0, 1], ValueError, r"got logits \(3, 4\) and labels \(2,\)"),
        ([[0], [1], [2]], ValueError, r"got logits \(3, 4\) and labels \(3, 1\)"),
    ):
        with pytest.raises(error, match=message):
            nn.cross_entropy(x, np.array(labels))
    with pytest.raises(TypeError, match="cross_entropy: logits must be an array or a Tensor, got list"):
        nn.cross_entropy([[0.0, 1.0]], np.array([0]))
    with pytest.raises(ValueError, match=r"nll_loss: log_probabilities of shape"):
        nn.nll_loss(normal(3), np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="label_smoothing must be between 0 and 1, got 2"):
        nn.cross_entropy(x, np.zeros(3, int), label_smoothing=2)
    with pytest.raises(
        ValueError, match=r"mse_loss: prediction and target must have one shape, got \(3, 4\) and \(3,\)"
    ):
        nn.mse_loss(x, normal(3))
    with pytest.raises(ValueError, match="l1_loss: reduction must be one of"):
        nn.l1_loss(x, x, reduction="max")
