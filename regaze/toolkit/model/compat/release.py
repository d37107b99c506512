"""Which releases of transformers regaze was tested with."""

from __future__ import annotations

import transformers
from packaging.version import Version

#: The oldest and the newest minor release that the whole test suite passed with.
OLDEST, NEWEST = "5.17", "5.24"
#: Model types whose class fails in one release, whoever calls it, and why.
_BROKEN = {
    ("5.24.0", "llama4"): "its forward reads `image_outputs`, which its language model does not return",
}


def installed_release() -> str:
    """The version of transformers that is imported."""
    return str(transformers.__version__)


def is_tested(release: str) -> bool:
    """Whether this is a release from `OLDEST` to `NEWEST`, patches included; not one of development."""
    version = Version(release)
    if version.is_prerelease or version.local is not None:
        return False
    return Version(OLDEST) <= version and version.release[:2] <= Version(NEWEST).release


def known_defect(release: str, model_type: str) -> str | None:
    """Why models of this type cannot run under a release; None where nothing is known of it."""
    return _BROKEN.get((release, model_type))
