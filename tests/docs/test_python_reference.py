"""The reference of Python has every public name once."""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType

import pytest
from paths import DOCS

PAGES = sorted((DOCS / "reference" / "python").glob("*.md"))
SHOWN = [
    name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
]
PACKAGES = (
    "regaze",
    "regaze.demo",
    "regaze.errors",
    "regaze.eval",
    "regaze.eval.judges",
    "regaze.interventions",
    "regaze.interventions.controls",
    "regaze.kernels",
    "regaze.toolkit",
    "regaze.toolkit.analysis",
    "regaze.toolkit.plot",
    "regaze.toolkit.viewer",
)
#: Names of regaze.errors, which lists none, are those of classes; and this is said on the package's page.
UNLISTED = {"regaze.__version__"}


def public(package: str) -> list[str]:
    """The public names of a package that are no packages themselves."""
    module = import_module(package)
    names = getattr(module, "__all__", None) or [name for name in vars(module) if name[0].isupper()]
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_shown(package):
    shown = {id(resolve_name(name)) for name in SHOWN}
    missing = [
        f"{package}.{name}"
        for name in public(package)
        if id(getattr(import_module(package), name)) not in shown
    ]
    assert [name for name in missing if name not in UNLISTED] == []


def test_no_name_is_shown_twice_and_none_is_a_module():
    assert [name for name, count in Counter(SHOWN).items() if count > 1] == []
    assert [name for name in SHOWN if isinstance(resolve_name(name), ModuleType)] == []
