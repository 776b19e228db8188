"""Linear probes of many yes-or-no labels on the same activations: one logistic regression a label, fitted together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class LabelProbes:
    """Fitted probes, one per label."""

    weights: Float[np.ndarray, "d f"]
    bias: Float[np.ndarray, " f"]
    loss: Float[np.ndarray, " f"]
    """Mean cross-entropy plus penalty, in nats."""
    gradient: Float[np.ndarray, " f"]
    """Largest absolute entry of each probe's gradient."""

    def scores(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m f"]:
        """Logits: above 0 where the label is the likelier answer."""
        return x @ self.weights + self.bias


def fit_labels(
    x: Float[np.ndarray, "n d"],
    labels: Bool[np.ndarray, "n f"],
    penalty: float,
    iterations: int,
    used: Bool[np.ndarray, "n f"] | None = None,
    tolerance: float = 1e-5,
) -> LabelProbes:
    """Binary logistic regressions: mean cross-entropy + penalty / 2 * |weights|^2, the bias free.

    One L-BFGS for all labels, in float64 and in coordinates in which the curvature is nearly the identity,
    A = (X'X / (4 n) + penalty)^(-1/2), computed once for all labels; that changes the way to the optimum, not the optimum.

    Args:
        x: activations, usually standardised.
        labels: what each probe learns.
        penalty: of the weights; it must be above 0, for labels that can be separated have no finite optimum without.
        iterations: of the search, at most.
        used: the examples that each probe is fitted on; all when not given. Both labels must occur among them.
        tolerance: largest entry of the gradient at which the search ends, in these coordinates.

    Raises:
        ValueError: a probe that sees one label alone.
    """
    from scipy.optimize import minimize

    data, truth = np.asarray(x, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    share = np.ones_like(truth) if used is None else np.asarray(used, dtype=np.float64)
    share /= share.sum(0)
    prior = (share * truth).sum(0)
    if not ((prior > 0) & (prior < 1)).all():
        raise ValueError(f"probe {int(np.argmin(prior * (1 - prior)))} sees one label alone")
    n, d = data.shape
    f = truth.shape[1]
    values, vectors = np.linalg.eigh(data.T @ data / (4 * n))
    root = (vectors / np.sqrt(values.clip(min=0) + penalty)) @ vectors.T
    turned = data @ root

    def parts(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Losses `[f]`, weights in the given coordinates, and slopes by weights (there) and by bias."""
        free, bias = flat[: d * f].reshape(d, f), flat[d * f :]
        weights = root @ free
        z = turned @ free + bias
        likelihood = np.logaddexp(0.0, z) - truth * z
        rest = share * (1 / (1 + np.exp(-z)) - truth)
        loss = (share * likelihood).sum(0) + penalty / 2 * np.square(weights).sum(0)
        return loss, weights, turned.T @ rest + penalty * (root @ weights), rest.sum(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, _, slopes, bias = parts(flat)
        return float(loss.sum()), np.concatenate([slopes.ravel(), bias])

    start = np.concatenate([np.zeros(d * f), np.log(prior / (1 - prior))])
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "gtol": tolerance, "ftol": 0.0}
    with np.errstate(over="ignore"):  # exp of a very negative logit is infinite, and the share 0
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        loss, weights, slopes, bias = parts(found.x)
    back = np.linalg.solve(root, slopes)  # slopes by the weights themselves
    gradient = np.maximum(np.abs(back).max(0), np.abs(bias))
    return LabelProbes(weights, found.x[d * f :].copy(), loss, gradient)
