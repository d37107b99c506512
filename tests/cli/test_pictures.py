"""Images that commands read: files, shipped scenes, and URLs where they are allowed."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from models import picture
from typer.testing import CliRunner

from regaze.cli import app
from regaze.cli.commands.heatmap import heatmap
from regaze.cli.pictures import find_image, find_images
from regaze.errors import InputError
from regaze.eval.benchmarks.common import earlier
from regaze.toolkit.plot.views import Views

URL = "https://host/a,b.png?key=secret"


def test_a_url_is_fetched_where_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("REGAZE_CACHE", str(tmp_path / "cache"))
    picture(0, 60, 60).save(tmp_path / "a.png")
    monkeypatch.setattr(earlier, "fetch", lambda url: (tmp_path / "a.png").read_bytes())
    assert find_image(URL, allow_urls=True).read_bytes() == (tmp_path / "a.png").read_bytes()
    assert find_images(URL, allow_urls=True) == [find_image(URL, allow_urls=True)]
    with pytest.raises(InputError, match=r"^image: https://host/a,b\.png is a URL: --allow-urls lets it be"):
        find_image(URL)


@pytest.mark.parametrize(
    "command", [["heatmap", URL, "Why?"], ["view", URL, "Why?"], ["inspect", "demo", "--image", URL]]
)
def test_commands_refuse_urls(command):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "is a URL: --allow-urls lets it be fetched" in " ".join(result.stderr.split())
    assert "secret" not in result.stderr


def test_heatmap_offers_the_views_that_the_figure_has():
    hints = get_type_hints(heatmap, include_extras=False)
    assert hints["views"] == Views
