"""Pages in a real browser: what is drawn is what was recorded, by mouse, by keyboard and from a link.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium; skipped where one is missing.
REGAZE_SCREENSHOTS names a folder for pictures of the pages.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from browser import Browser, headless
from models import picture
from viewer_records import long_groups, synthetic

from regaze.toolkit.prompts.token_map import View
from regaze.toolkit.viewer import Page, Variant, answer_page, build_page, record_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
QUESTION = (" <script>document.title='run'</script>", " What", " is\n", "</script>", "<b>it</b>", "?")
#: 8-bit channels lose up to this much on the way through a canvas, which stores them multiplied by opacity.
ROUNDING = 4


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("selenium", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    driver = headless(CHROMIUM, DRIVER)
    yield Browser(driver, tmp_path_factory.mktemp("pages"))
    driver.quit()


@pytest.fixture(scope="module")
def traces():
    return [synthetic(range(3), images=2, question=QUESTION, seed=seed, sharpness=4.0) for seed in (0, 1)]


@pytest.fixture(scope="module")
def page(traces):
    variants = [Variant("plain", answer="Yes"), Variant("var", "rho=0.5", "No")]
    return build_page([traces], range(3), variants=variants, images=[picture(0), picture(1)], model="test")


@pytest.fixture(autouse=True)
def quiet(browser):
    """No test may leave an error in the console or ask the network for anything."""
    yield
    assert browser.complaints() == []
    assert browser.requests() == []


def first(trace) -> str:
    """The link to the view of the answer's first token; the page opens elsewhere."""
    return f"#token={trace.tokens.length}"


def row_of(trace, token: int) -> int:
    """The recorded row of a token as the page counts them: that of the token before for the answer."""
    length = trace.tokens.length
    return trace.row_position.tolist().index(token if token < length else token - 1)


def image_rows(weights: torch.Tensor) -> list[np.ndarray]:
    """The two images' maps among a row's weights [C]."""
    return [weights[1 + 64 * n : 65 + 64 * n].reshape(8, 8).numpy() for n in (0, 1)]


def assert_drawn(browser: Browser, maps: list[np.ndarray]) -> None:
    """The canvases show these weights, on one scale."""
    most = max(np.abs(m).max() for m in maps)
    colours = matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255
    for number, weights in enumerate(maps):
        size = np.rint(weights / most * 255).astype(int)
        drawn = browser.map(number)
        np.testing.assert_allclose(drawn[..., :3], colours[size], atol=ROUNDING)
        np.testing.assert_allclose(drawn[..., 3], 110 + 145 * size / 255, atol=1)


def test_maps_show_the_recorded_weights(browser, page, traces):
    browser.open(page, first(traces[0]))
    weights, last = traces[1].slices[:, 0], row_of(traces[1], traces[1].tokens.length)
    assert browser.state()["layer"] == "all"
    assert_drawn(browser, image_rows(weights[:, :, last].mean((0, 1))))
    token = traces[1].tokens.length - 3
    browser.click(f"#token-{token}")
    row = row_of(traces[1], token)
    assert_drawn(browser, image_rows(weights[:, :, row].mean((0, 1))))
    browser.run(
        "const s = document.getElementById('layer'); s.value = 2; s.dispatchEvent(new Event('change'))"
    )
    assert_drawn(browser, image_rows(weights[2, :, row].mean(0)))
    browser.press("x")
    assert_drawn(browser, image_rows(weights[2, :, row].amax(0)))
    browser.press("]", "]", "]")
    assert browser.state()["head"] == "2"
    assert_drawn(browser, image_rows(weights[2, 2, row]))
    browser.click("#shows [data-show='0']")
    assert_drawn(browser, image_rows(traces[0].slices[2, 0, 2, row]))


def test_the_difference_is_drawn_in_two_colours_as_strong_as_it_is(browser, page, traces):
    browser.open(page, first(traces[0]) + "&layer=1&head=mean")
    browser.press("d")
    row = row_of(traces[0], traces[0].tokens.length)
    change = [traces[i].slices[1, 0, :, row].mean(0) for i in (0, 1)]
    maps = image_rows(change[1] - change[0])
    most = max(np.abs(m).max() for m in maps)
    for number, expected in enumerate(maps):
        drawn = browser.map(number)
        np.testing.assert_allclose(drawn[..., 3], 255 * np.abs(expected) / most, atol=2)
        strong = drawn[..., 3] > 60
        assert strong.any()
        assert np.array_equal(drawn[strong][:, 0] > drawn[strong][:, 2], expected[strong] > 0)
    assert "var − plain" in browser.text("#readout")
    browser.press("d")
    assert browser.state()["show"] == "edited"


def test_numbers_on_the_page_are_those_of_the_record(browser, page, traces):
    browser.open(page, first(traces[0]) + "&layer=0&head=4&show=plain")
    weights = traces[0].slices[0, 0, 4, row_of(traces[0], traces[0].tokens.length)]
    listed = browser.run(
        "return Array.from(document.querySelectorAll('#strongest button'), b => [Number(b.dataset.column), "
        "parseFloat(b.children[1].textContent)])"
    )
    assert [column for column, _ in listed] == weights.topk(12).indices.tolist()
    np.testing.assert_allclose([shown for _, shown in listed], 100 * weights.topk(12).values, rtol=6e-3)
    masses = browser.run(
        "return Array.from(document.querySelectorAll('#roles tr'), r => [r.children[0].textContent, "
        "parseFloat(r.children[2].textContent)])"
    )
    image = float(weights[1:129].sum())
    assert dict(masses)["image"] == pytest.approx(100 * image, rel=6e-3)
    assert sum(mass for _, mass in masses) == pytest.approx(100, abs=0.3)
    assert "100 % of it is on this page" in browser.text("#readout")
    label = browser.run(
        "return document.querySelector('#layers .cell[aria-selected=true]').getAttribute('aria-label')"
    )
    assert label.startswith("layer 0: image ")


def test_texts_of_the_prompt_stay_texts(browser, page):
    browser.open(page)
    shown = browser.run("return Array.from(document.querySelectorAll('#prompt .live'), c => c.textContent)")
    assert shown == [piece.replace("\n", "⏎\n") for piece in QUESTION]
    assert browser.run("return document.title").endswith("· regaze")
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('.tokens b, .tokens script').length") == 0


def test_a_script_that_got_in_would_not_run(browser, page):
    browser.open(Page(page.html.replace("</main>", "</main><script>window.ran = 1</script>")))
    assert browser.run("return window.ran") is None
    (complaint,) = browser.complaints()
    assert "Content Security Policy" in complaint


def test_the_keyboard_reaches_everything(browser, page, traces):
    from selenium.webdriver.common.keys import Keys

    browser.open(page, first(traces[0]))
    length = traces[0].tokens.length
    expected = {"token": str(length), "layer": "all", "head": "mean", "show": "edited"}
    assert expected.items() <= browser.state().items()
    steps = [
        (Keys.ARROW_RIGHT, "token", str(length + 1)),
        (Keys.HOME, "token", str(length - len(QUESTION))),
        (Keys.END, "token", str(length + 2)),
        (Keys.ARROW_LEFT, "token", str(length + 1)),
        (Keys.ARROW_UP, "layer", "0"),
        (Keys.ARROW_UP, "layer", "1"),
        (Keys.ARROW_DOWN, "layer", "0"),
        ("x", "head", "max"),
        ("]", "head", "0"),
        ("[", "head", "max"),
        ("m", "head", "mean"),
        ("1", "show", "plain"),
        ("3", "show", "difference"),
        ("2", "show", "edited"),
        ("-", "opacity", "70"),
        ("+", "opacity", "80"),
        ("s", "scale", "root"),
        ("i", "smooth", "1"),
        ("a", "layer", "all"),
    ]
    for key, name, value in steps:
        browser.press(key)
        assert browser.state()[name] == value, key
    assert browser.run("return document.querySelector('#prompt').hasAttribute('aria-activedescendant')")
    browser.press("?")
    assert browser.run("return document.getElementById('keys').open")
    listed = browser.text("#key-list")
    assert all(key in listed for key in ("← →", "↑ ↓", "[ ]", "Home End"))
    browser.press(Keys.ESCAPE)
    assert not browser.run("return document.getElementById('keys').open")


def test_a_link_restores_the_view(browser, page, traces):
    browser.open(page)
    browser.press("1", "s", "-")
    browser.click(f"#token-{traces[0].tokens.length - 2}")
    browser.click("#layers .cell:nth-child(3)")
    browser.click("#heads .cell:nth-child(6)")
    fragment, maps = browser.run("return location.hash"), browser.map()
    assert {
        "layer": "1",
        "head": "4",
        "scale": "root",
        "opacity": "70",
        "show": "plain",
    }.items() <= browser.state().items()
    browser.open(page, fragment)
    assert browser.run("return location.hash") == fragment
    assert np.array_equal(browser.map(), maps)
    browser.open(page, "#token=1&layer=99&head=x&opacity=200&show=nothing")  # nonsense is passed over
    assert {
        "layer": "all",
        "head": "mean",
        "opacity": "80",
        "show": "edited",
    }.items() <= browser.state().items()


def test_pictures_are_covered_by_their_maps(browser, page):
    browser.open(page)
    boxes = browser.run(
        "return Array.from(document.querySelectorAll('.frame'), f => ['img', 'canvas'].map(n => "
        "{const b = f.querySelector(n).getBoundingClientRect(); return [b.x, b.y, b.width, b.height]}))"
    )
    assert len(boxes) == 2
    for image, canvas in boxes:
        assert image == canvas
        assert image[2] > 100
    assert browser.run("return Array.from(document.images, i => i.naturalWidth)") == [112, 112]


def test_the_page_works_in_a_notebooks_frame(browser, page):
    browser.open(page)  # so that the log is emptied
    path = browser.folder / "notebook.html"
    path.write_text(f"<!DOCTYPE html><body>{page._repr_html_()}", encoding="utf-8")
    browser.driver.get(path.as_uri())
    browser.driver.switch_to.frame(0)
    browser.wait("document.documentElement.dataset.ready === '1'")
    browser.click("#row-title")  # the keyboard follows the mouse into a frame
    browser.press("d")
    assert "var − plain" in browser.text("#readout")
    browser.driver.switch_to.default_content()


def test_tiles_lie_as_in_their_image(browser):
    trace = synthetic(range(2), grid=(6, 6), images=7, question=(" Where", "?"))
    boxes = [(x / 3, y / 2, (x + 1) / 3, (y + 1) / 2) for y in range(2) for x in range(3)]
    views = tuple(View((6, 6), 0, box) for box in [(0.0, 0.0, 1.0, 1.0), *boxes])
    trace = replace(trace, tokens=replace(trace.tokens, views=(views,)))
    browser.open(
        build_page([[trace]], range(2), images=[picture(0, 384, 256)]), first(trace) + "&layer=1&head=2"
    )
    places = browser.run(
        "return Array.from(document.querySelectorAll('.frame canvas'), c => "
        "{const b = c.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]})"
    )
    whole, tiles = np.array(places[0]), np.array(places[1:])
    assert whole[2] / whole[3] == pytest.approx(1.5, abs=0.01)
    origin, size = tiles[:, :2].min(0), (tiles[:, :2] + tiles[:, 2:]).max(0) - tiles[:, :2].min(0)
    shares = np.concatenate(
        [(tiles[:, :2] - origin) / size, (tiles[:, :2] + tiles[:, 2:] - origin) / size], 1
    )
    np.testing.assert_allclose(shares, boxes, atol=0.01)
    weights = trace.slices[1, 0, 2, row_of(trace, trace.tokens.length)]
    maps = [weights[1 + 36 * n : 37 + 36 * n].reshape(6, 6).numpy() for n in range(7)]
    assert_drawn(browser, maps)
    browser.shot("tiles")


def test_cells_of_a_picture_can_be_chosen_where_their_rows_were_recorded(browser, gaze):
    with gaze.recording(slices="all", rows="all") as record:
        gaze.ask([picture(1)], ["What?"], max_new_tokens=2, eos_token_id=None)
    browser.open(record_page(record, images=[picture(1)]), "#layer=1&head=2")
    browser.click("#map-0", beside=9)  # of 8 x 8 cells the fifth in the fifth row
    cell = int(record[0].tokens.image_cells()[4 * 8 + 4])
    assert browser.state()["token"] == str(cell)
    assert "image, row 5, column 5" in browser.text("#readout")
    weights = record[0].slices[1, 0, 2, record[0].row_position.tolist().index(cell)]
    assert_drawn(browser, [weights[record[0].tokens.image_cells()].reshape(8, 8).numpy()])


def test_choosing_a_token_does_not_move_the_page(browser, page):
    browser.driver.set_window_size(700, 500)
    browser.open(page)
    browser.press("d", "d")
    assert browser.run("return scrollY") == 0
    browser.driver.set_window_size(1400, 1000)


@pytest.mark.parametrize("width", [1400, 700])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.driver.set_window_size(width, 1000)
    browser.open(page)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.driver.set_window_size(1400, 1000)


def contrast(first: list[float], second: list[float]) -> float:
    """Contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser, page, scheme):
    browser.open(page)
    browser.run("document.documentElement.style.colorScheme = arguments[0]", scheme)
    read = """const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgb = (name) => {
          const span = document.createElement('span');
          span.style.color = `var(${name})`;
          document.body.append(span);
          probe.fillStyle = getComputedStyle(span).color;
          span.remove();
          probe.fillRect(0, 0, 1, 1);
          return Array.from(probe.getImageData(0, 0, 1, 1).data).slice(0, 3);
        };
        return Object.fromEntries(arguments[0].map((name) => [name, rgb(name)]))"""
    names = ["--ink", "--muted", "--card", "--page", "--well", "--hot", "--gained", "--lost", "--focus"]
    colours = browser.run(read, names)
    for text, ground in (
        *(("--ink", g) for g in ("--card", "--page", "--well", "--hot", "--gained", "--lost")),
        *(("--muted", g) for g in ("--card", "--page")),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--focus"], colours["--card"]) >= 3


def test_a_long_prompt_stays_quick(browser):
    page = build_page(
        long_groups(),
        range(12),
        variants=[Variant("plain"), Variant("edited")],
        images=[picture(0, 512, 512)],
    )
    size = len(page.html.encode())
    assert size < 10_000_000
    browser.open(page, name="long")
    times = browser.times()
    loaded = browser.run("return performance.timing.loadEventEnd - performance.timing.navigationStart")
    print(f"\n{size / 1e6:.2f} MB, loaded in {loaded} ms; ms of work, and until painted:")
    print(", ".join(f"{key} {worked:.0f}/{painted:.0f}" for key, worked, painted in times))
    # A shared machine without a GPU: what is asserted is that nothing grows with the size of the page.
    assert np.median([worked for _, worked, _ in times]) < 250
    browser.shot("long")


def test_a_text_of_four_thousand_tokens_stays_quick(browser):
    question = tuple(f" word{n}" for n in range(4000))
    trace = synthetic(range(2), heads=3, images=0, question=question, answer=(" ab", "cd"))
    keep = torch.arange(len(trace.row_position) - 40, len(trace.row_position))
    short = {n: getattr(trace, n)[:, :, :, keep] for n in ("slices", "masses")}
    short |= {n: getattr(trace, n)[..., keep] for n in ("row_position", "row_step", "row_active")}
    browser.open(build_page([[replace(trace, **short)]], range(2)), name="text")
    assert browser.run("return document.querySelectorAll('.token').length") == 4003
    assert browser.run("return document.querySelectorAll('.frame canvas').length") == 0
    times = browser.times()
    print(
        "\n4,000 words; " + ", ".join(f"{key} {worked:.0f}/{painted:.0f}" for key, worked, painted in times)
    )
    assert np.median([worked for _, worked, _ in times]) < 250
    browser.shot("text-4000")


def test_the_word_dog_looks_at_the_dog(browser):
    """The bundled model, a shipped scene and a real intervention: the picture in docs/guide/viewer.md."""
    from regaze import HeadKnockout, demo, load, wrap

    if not demo.MODEL_DIR.is_dir():
        pytest.skip("the demo model is not in this checkout")
    scene = next(scene for scene in demo.scenes() if scene.name.startswith("scene_012"))
    method = HeadKnockout(heads=((0, 0), (0, 3)))
    shown = answer_page(
        wrap(*load("demo")), scene.image(), "Is there a dog in the image?", method, model="demo"
    )
    browser.open(shown, "#layer=0&head=0&show=plain")
    browser.run(
        "Array.from(document.querySelectorAll('#prompt .live')).find(c => c.textContent === ' dog').click()"
    )
    strength = browser.map()[..., :3].sum(-1)
    row, column = np.unravel_index(strength.argmax(), strength.shape)
    x0, y0, x1, y1 = next(thing.box for thing in scene.objects if thing.category == "dog")
    assert x0 <= (column + 0.5) * 14 <= x1
    assert y0 <= (row + 0.5) * 14 <= y1
    browser.shot("demo")


def test_pictures_of_the_page(browser, page):
    """Screenshots are not compared with earlier ones; that both schemes paint something is."""
    browser.open(page)
    for scheme in ("light", "dark"):
        browser.run("document.documentElement.style.colorScheme = arguments[0]", scheme)
        path = browser.folder / f"{scheme}.png"
        browser.driver.save_screenshot(str(path))
    from PIL import Image

    light, dark = (
        np.asarray(Image.open(browser.folder / f"{s}.png").convert("L")).mean() for s in ("light", "dark")
    )
    assert light > 180 > 80 > dark
    browser.run("document.documentElement.style.colorScheme = ''")
    browser.shot("two-images")
    browser.shot("two-images-dark", dark=True)


def test_masses_alone_are_bars_beside_a_picture_in_colour(browser):
    trace = replace(synthetic(range(3), question=(" What", "?")), slices=None, slice_columns=None)
    shown = {"variants": [Variant("plain")], "model": "test"}
    browser.open(build_page([[trace]], range(3), images=[picture(0)], **shown))
    image = "getComputedStyle(document.querySelector('.frame img'))"
    assert browser.run(f"return {image}.filter") == "none"
    height = "return document.querySelector('%s').offsetHeight"
    assert [browser.run(height % it) for it in (".legend.pictorial", "#opacity")] == [0, 0]
    assert browser.run("return document.querySelectorAll('#roles .bar').length") >= 2
    browser.open(build_page([[trace]], range(3), **shown), name="bare")
    assert browser.run(height % "#pictures") == 0


def test_the_grid_of_heads_has_numbers_and_a_colour_bar(browser, page, traces):
    browser.open(page)
    numbers = "return [...document.querySelectorAll('#grid .%s span')].map((tick) => tick.textContent)"
    assert browser.run(numbers % "layer-ticks") == ["0", "1", "2"]
    heads = traces[0].masses.shape[2]
    assert browser.run(numbers % "head-ticks") == [str(head) for head in range(heads)]
    box = "const box = document.querySelectorAll('#grid %s')[%d].getBoundingClientRect();"
    middle = "return box.top + box.height / 2"
    tick = browser.run(box % (".layer-ticks span", 2) + middle)
    top, height = browser.run(box % ("canvas", 0) + "return [box.top, box.height]")
    assert (tick - top) / height == pytest.approx(2.5 / 3, abs=0.02)
    assert browser.run("return document.getElementById('grid-legend-high').textContent").endswith("%")
