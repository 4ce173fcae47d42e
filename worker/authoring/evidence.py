"""What the text of a policy says of its calibrations: what they were fitted on, and how good they
are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from ruamel.yaml import YAML

from worker.authoring.edit import Value, with_keys
from worker.authoring.results import Calibrated, Fit


def stated_prevalences(text: str) -> Mapping[str, float]:
    """By category id, what the calibrations in ``text`` of a valid policy say of live traffic."""
    stated = {}
    for category in YAML(typ="safe", pure=True).load(text)["categories"]:
        calibration = category.get("calibration") or {}
        if "prevalence" in calibration:
            stated[category["id"]] = float(calibration["prevalence"])
    return stated


def with_calibrations(text: str, calibrated: Calibrated, today: date) -> str:
    """``text`` with the fits and the solved thresholds of all categories that have them; those for
    which something was refused stay as they were. Raises ``Misconfigured`` as ``with_keys`` does.
    """
    edits: dict[str, dict[str, Value]] = {}
    for fit in calibrated.fits:
        if fit.why_not_written is None:
            edits[fit.category] = {"calibration": _entries(fit, calibrated.data, today)}
            for threshold in fit.thresholds:
                if threshold.target is not None and threshold.value is not None:
                    edits[fit.category][f"{threshold.action}.value"] = threshold.value
    return with_keys(text, edits)


def _entries(fit: Fit, data: str, today: date) -> dict[str, Value]:
    calibration, auroc, ece = fit.calibration, fit.auroc, fit.ece
    assert calibration is not None and auroc is not None and ece is not None
    fitted: dict[str, Value]
    if calibration.method == "isotonic":
        fitted = {"points": [list(point) for point in calibration.points]}
    elif calibration.method == "temperature" and not calibration.bias:
        fitted = {"scale": calibration.scale}
    else:
        fitted = {"scale": calibration.scale, "bias": calibration.bias}
    positives, negatives = fit.fitted_on
    return {
        "method": calibration.method,
        **fitted,
        "for": calibration.fitted_for,
        "data": data,
        "positives": positives,
        "negatives": negatives,
        **({} if fit.prevalence is None else {"prevalence": fit.prevalence}),
        "auroc": round(auroc.value, 4),
        "ece": round(ece.value, 4),
        "ece_interval": [round(ece.low, 4), round(ece.high, 4)],
        "held_out": _held_out(fit),
        "date": today.isoformat(),
    }


def _held_out(fit: Fit) -> str:
    """What the figures were measured on."""
    if (folds := int(fit.folds.max()) + 1) == 1:
        return f"a split of {fit.positives} + {fit.negatives}"
    return f"{folds} folds" + (" of whole sources" if fit.by_source else "")
