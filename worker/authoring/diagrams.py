"""The four charts of a fitted category, by what the other folds said of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

from worker.authoring.axes import Axis, log_odds, powers, shares, shares_from_small
from worker.authoring.charts import Bars, Dots, Line, Spot, Upright, chart
from worker.authoring.examples import Floats
from worker.authoring.quantities import count, counted, listed, percent
from worker.authoring.rates import wilson
from worker.authoring.results import Fit, ThresholdReport

RELIABILITY_BINS: Final = 15
_HISTOGRAM_BINS: Final = 36
_MOST_POINTS: Final = 200  # of a curve; more cannot be seen
SHOWN: Final = "shows it"
NOT_SHOWN: Final = "does not"


def reliability(fit: Fit) -> Markup:
    """Predicted against observed, in bins of equally many images."""
    points, words = [], []
    weights = live_weights(fit)
    order = np.argsort(fit.held_out, kind="stable")
    for chosen in np.array_split(order, min(RELIABILITY_BINS, len(order))):
        of = weights[chosen]
        predicted = float(np.average(fit.held_out[chosen], weights=of))
        observed = float(np.average(fit.labels[chosen], weights=of))
        effective = float(of.sum() ** 2 / np.square(of).sum())  # Kish 1965: as many, if all alike
        _, low, high = wilson(observed * effective, effective)
        points.append((predicted, observed, low, high))
        words.append(
            f"predicted {percent(predicted)}, observed {percent(observed)} "
            f"({percent(low)} to {percent(high)}) of {counted(len(chosen), 'image')}"
        )
    return chart(
        f"Reliability diagram of {fit.category}",
        f"By bin, what was predicted and what was so: {'; '.join(words)}.",
        shares_from_small("predicted probability"),
        shares_from_small("share that shows it"),
        [
            Line([(0, 0), (1, 1)], "faint", "as it should be", dashed=True),
            Dots(points, words, "c", "bins, with 95 % intervals"),
        ],
    )


def histogram(fit: Fit) -> Markup:
    """How the probabilities of either kind are spread, upwards and downwards from the middle."""
    axis = log_odds("probability (the ends are stretched)")
    edges = [
        1 / (1 + np.exp(-z))
        for z in np.linspace(axis.scale(axis.low), axis.scale(axis.high), _HISTOGRAM_BINS + 1)
    ]
    inside = np.clip(fit.held_out, axis.low, axis.high)
    sides, tallest = [], 0.0
    for kind, direction in ((fit.labels, 1), (~fit.labels, -1)):
        heights, _ = np.histogram(inside[kind], edges, weights=fit.weights[kind])
        heights = heights / fit.weights[kind].sum()
        tallest = max(tallest, float(heights.max()))
        spans = [
            (left, right, 0.0, direction * float(height))
            for left, right, height in zip(edges, edges[1:], heights, strict=False)
        ]
        words = [
            f"{percent(height)} of them have {percent(left)} to {percent(right)}"
            for left, right, height in zip(edges, edges[1:], heights, strict=False)
        ]
        sides.append((spans, words))
    up = shares("", tallest)
    both_ways = [(-value, text) for value, text in up.ticks[1:]] + list(up.ticks)
    return chart(
        f"Probabilities of {fit.category}",
        f"How the probabilities of {counted(fit.positives, 'image')} that show it and "
        f"{count(fit.negatives)} that do not are spread. Median of the former "
        f"{percent(float(np.median(fit.held_out[fit.labels])))}, of the latter "
        f"{percent(float(np.median(fit.held_out[~fit.labels])))}.",
        axis,
        Axis("share of its kind", -up.high, up.high, both_ways),
        [
            Bars(*sides[0], "a", SHOWN),
            Bars(*sides[1], "b", NOT_SHOWN),
            *_lines(fit.thresholds),
        ],
    )


def roc(fit: Fit) -> Markup:
    """Recall against false-positive rate, whose small values have most of the room."""
    fpr, recall, _ = roc_curve(fit.labels, fit.held_out, sample_weight=fit.weights)
    half_an_image = 0.5 / max(10, fit.negatives)  # so that none, at the edge, is not one
    axis = powers("false-positive rate (small ones have more room)", half_an_image)
    chance = np.geomspace(axis.low, 1.0, 40)
    spots = [_spot(one, *at[:2]) for one, at in _reached(fit)]
    return chart(
        f"ROC curve of {fit.category}",
        f"Recall by false-positive rate. {_described(fit)}",
        axis,
        shares("recall"),
        [
            Line([(x, x) for x in chance], "faint", "chance", dashed=True),
            Line(_thinned(fpr, recall), "c"),
            *spots,
        ],
    )


def precision_recall(fit: Fit) -> Markup:
    """Precision against recall, at the stated prevalence or else at the data's own."""
    weights = live_weights(fit)
    precision, recall, _ = precision_recall_curve(
        fit.labels, fit.held_out, sample_weight=weights, drop_intermediate=True
    )
    share = float(weights[fit.labels].sum() / weights.sum())
    spots = [
        _spot(one, recall_there, precision_there)
        for one, (_, recall_there, precision_there) in _reached(fit)
        if precision_there is not None
    ]
    return chart(
        f"Precision and recall of {fit.category}",
        f"Precision by recall where {percent(share)} of images show it. {_described(fit)}",
        shares("recall"),
        shares("precision"),
        [
            Line([(0, share), (1, share)], "faint", f"chance ({percent(share)})", dashed=True),
            Line(_thinned(recall, precision), "c"),
            *spots,
        ],
    )


def live_weights(fit: Fit) -> Floats:
    """By image; those that show it make up the stated prevalence, if there is one."""
    if fit.prevalence is None:
        return fit.weights
    share = fit.weights[fit.labels].sum() / fit.weights.sum()
    factors = np.where(fit.labels, fit.prevalence / share, (1 - fit.prevalence) / (1 - share))
    weighted: Floats = fit.weights * factors
    return weighted


def rates(fit: Fit, threshold: float) -> tuple[float, float, float | None]:
    """False-positive rate, recall and precision from ``threshold`` on; no precision where nothing
    reaches it."""
    reached = fit.held_out >= threshold
    fpr = float(np.average(reached[~fit.labels], weights=fit.weights[~fit.labels]))
    recall = float(np.average(reached[fit.labels], weights=fit.weights[fit.labels]))
    weights = live_weights(fit)[reached]
    precision = float(np.average(fit.labels[reached], weights=weights)) if weights.size else None
    return fpr, recall, precision


def _reached(fit: Fit) -> list[tuple[ThresholdReport, tuple[float, float, float | None]]]:
    """The thresholds that have a value, and what it comes to."""
    return [(one, rates(fit, one.value)) for one in fit.thresholds if one.value is not None]


def _spot(threshold: ThresholdReport, x: float, y: float) -> Spot:
    name = _name(threshold)
    hollow = threshold.action == "review"
    return Spot(x, y, f"{name}: {percent(x)}, {percent(y)}", name=name, hollow=hollow)


def _lines(thresholds: Sequence[ThresholdReport]) -> list[Upright]:
    return [
        Upright(one.value, name=_name(one), dashed=one.action == "review")
        for one in thresholds
        if one.value is not None
    ]


def _name(threshold: ThresholdReport) -> str:
    return f"{threshold.action} {threshold.value:g}"


def _described(fit: Fit) -> str:
    said = [
        f"{percent(recall)} and {percent(fpr)} from {one.value:g} ({one.action})"
        for one, (fpr, recall, _) in _reached(fit)
    ]
    return f"Recall and false-positive rate are {listed(said)}." if said else ""


def _thinned(xs: Floats, ys: Floats) -> list[tuple[float, float]]:
    step = max(1, len(xs) // _MOST_POINTS)
    places = sorted({*range(0, len(xs), step), len(xs) - 1})
    return [(float(xs[place]), float(ys[place])) for place in places]
