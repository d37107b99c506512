"""The content of an audit.json with every verdict, made up, as `regaze.audit.results` checks it."""

from __future__ import annotations

from typing import Any

from regaze.audit.results import AuditResults
from regaze.audit.verdicts import RULES

#: method -> its verdict on each model
VERDICTS = {
    "pai": ("better", "no difference shown"),
    "vcd": ("explained by a control", "explained by a control"),
    "dola": ("damages", "damages"),
    "unheard": ("not run", "not run"),
}
MODELS = ("one", "two")


def part(value: float, plain: float) -> dict[str, Any]:
    change = value - plain
    return {
        "metric": "accuracy",
        "score": value,
        "plain": plain,
        "difference": change,
        "difference_interval": [change - 0.02, change + 0.02],
        "p": 0.01,
    }


def tested(value: float, **changes: Any) -> dict[str, Any]:
    """A benchmark on which the plain model has 0.8."""
    beside = {
        name: {key: each for key, each in part(value, other).items() if key not in ("metric", "plain")}
        for name, other in (("prefer-yes", 0.5), ("random heads <i>", 0.81))
    }
    whole = {key: each for key, each in part(value, 0.8).items() if key != "p"}
    return {
        **whole,
        "scorer": "regaze",
        "lower_is_better": False,
        "decides": True,
        "questions": 180,
        "clusters": 30,
        "failed": 0,
        "interval": [value - 0.03, value + 0.03],
        "plain_interval": [0.77, 0.83],
        "detectable": 0.025,
        "changed": 12,
        "controls": beside,
        "best_control": "random heads <i>",
        **dict.fromkeys(("p_plain", "p_plain_holm", "p_control", "p_control_holm", "p_holm"), 0.004),
        "splits": {},
        "scorers": {"regaze": part(value, 0.8)},
        "disagreement": None,
        "confounds": {
            "length": [1.0, 1.0],
            "repetition": None,
            "yes_ratio": [0.5, 0.48],
            "unreadable": [0.0, 0.0],
        },
        "flags": ["2.0 forwards per token"],
        **changes,
    }


def damage(verdict: str) -> dict[str, Any]:
    """Three points lost in the check; text is spoilt where the verdict says so."""
    spoilt = verdict == "damages"
    lost = {"difference": -0.03, "difference_interval": [-0.07, 0.01], "damaged": False}
    text = {"plain": 12.0, "perplexity": 13.5 if spoilt else 12.1, "damaged": spoilt}
    return {"benchmark": "mmstar", "error": None, "plain": 0.9, **lost, "text": text}


def method(label: str, verdict: str, value: float) -> dict[str, Any]:
    ran = verdict != "not run"
    captions = tested(
        0.4, metric="chair_s", lower_is_better=True, decides=False, best_control=None, controls={}, flags=[]
    )
    return {
        "method": {"method": label, "alpha": 0.5},
        "chosen": {"alpha": 0.5} if ran else None,
        "trials": [{"values": {"alpha": 0.5}, "score": 0.8, "half": "tuned", "error": None}],
        "benchmarks": {"captions": captions, "pope": tested(value)} if ran else {},
        "damage": damage(verdict) if ran else None,
        "cost": {"tokens_per_second": 90.0, "ratio": 1.25}
        if ran
        else {"tokens_per_second": None, "ratio": None},
        "verdict": verdict,
        "reason": f"because of {label}",
        "error": None if ran else "it raised",
    }


def audit_content() -> dict[str, Any]:
    """Two trainings of one model, four methods, two benchmarks."""
    models = {
        name: {
            "about": {"name": name},
            "group": "both",
            "halves": {"tuned": ["a.png"], "tested": ["b.png"]},
            "note": "divided",
            "tuned_on": {"benchmark": "pope", "metric": "accuracy", "questions": 90, "plain": 0.8},
            "folders": {"tuned": f"{name}/tuned", "tested": f"{name}/tested"},
            "seconds": 1800.0,
            "methods": {
                label: method(label, verdicts[at], 0.9 - 0.03 * row)
                for row, (label, verdicts) in enumerate(VERDICTS.items())
            },
        }
        for at, name in enumerate(MODELS)
    }
    content = {
        "format": 1,
        "name": "made up",
        "complete": True,
        "facts": {
            "created": "2026-01-01T00:00:00+00:00",
            "machine": {"platform": "none", "cpus": 2},
            "versions": {"torch": "2.13", "transformers": "5.24"},
            "models": dict.fromkeys(MODELS, "0123"),
            "seconds": 3600.0,
        },
        "rules": [{"verdict": rule.verdict, "when": rule.when} for rule in RULES],
        "models": models,
        "across": {
            label: {
                "verdicts": dict(zip(MODELS, verdicts, strict=True)),
                "groups": {},
                "holds": len({*verdicts}) == 1,
            }
            for label, verdicts in VERDICTS.items()
        },
    }
    return AuditResults.model_validate(content).model_dump(mode="json")
