"""Names of Snakemake's rules: those of shadow models say of whom and from which on, as ``train.undefended.016``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rule_name(stage: str, of: str, first: str) -> str:
    """Return the name of the rule that makes some shadow models of a method (or of experts), by the first of them."""
    return f"{stage}.{of}.{first}"


def stage_of(rule: str) -> str:
    """Return a rule's name without the method and the shadow models that it is for."""
    return rule.partition(".")[0]


def subject_of(rule: str, wildcards: Mapping[str, Any]) -> str:
    """Return whom a job works for: rules of shadow models say it in their name, others have a wildcard for it."""
    _, *of = rule.split(".")
    return next(iter([*of, *map(str, wildcards.values())]), "")
