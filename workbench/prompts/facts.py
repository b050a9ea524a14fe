"""A prompt search's report as plain JSON values, each figure with its 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from recsys_core.evaluation import Comparison
from workbench.prompts.metrics import Measured
from workbench.prompts.optimize import Part, Report
from workbench.prompts.templates import Template


def report_facts(report: Report) -> dict[str, Any]:
    """`dev` holds the fresh dev rows, which no search has seen; `test` is None where the test rows stayed sealed."""
    confirmation = report.confirmation
    return {
        "start": _template(report.start),
        "favourite": _template(report.favourite),
        "adopted": report.adopted.version,
        "confirmed": report.confirmed,
        "claimed_by_search": report.claimed,
        "note": report.note,
        "stopped": report.stopped,
        "templates_tried": report.searched,
        "proposals_rejected": report.rejected,
        "adjusted_p": list(confirmation.adjusted) if confirmation else [],
        "favourite_adjusted_p": report.adjusted_p,
        "winners_curse": asdict(report.curse) if report.curse else None,
        "dev": _part(report.fresh),
        "test": _part(report.test) if report.test else None,
        "shrinkage": {name: asdict(value) for name, value in report.shrinkage.items()},
    }


def measured_facts(measured: Measured) -> dict[str, dict[str, float]]:
    """By metric: value, low, high."""
    return {
        name: dict(zip(("value", "low", "high"), (measured.mean(name), *measured.interval(name)), strict=True)) for name in measured.values
    }


def difference_facts(comparison: Comparison) -> dict[str, float]:
    """after - before."""
    return {"value": comparison.difference, "low": comparison.low, "high": comparison.high, "p": comparison.p_value}


def _part(part: Part) -> dict[str, Any]:
    return {
        "rows": len(part.before.rows),
        "before": measured_facts(part.before),
        "after": measured_facts(part.after),
        "difference": {name: difference_facts(c) for name, c in part.differences.items()},
        "baselines": baseline_facts(part.baselines),
        "replies": dict(zip(("before", "after"), map(asdict, part.rates), strict=True)),
    }


def baseline_facts(baselines: Sequence[Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """By name and metric."""
    return {measured.name: measured_facts(measured) for measured in baselines}


def _template(template: Template) -> dict[str, Any]:
    return {"name": template.name, "version": template.version, "kind": template.kind, "author": template.author}
