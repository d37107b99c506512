"""Pictures are opened as an image viewer shows them, or refused in one line; pixels are read back."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from models import picture
from PIL import ExifTags, Image, ImageOps

from regaze.errors import InputError
from regaze.toolkit.prompts.images import describe_image, open_image

ORIENTATIONS = range(1, 9)


def with_orientation(image: Image.Image, orientation: int, file) -> None:
    """Save the picture as a camera does that was held another way: its pixels turned, and a note of it."""
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turned, note = image.copy(), Image.Exif()
    turned.getexif()[ExifTags.Base.Orientation] = undo
    turned = ImageOps.exif_transpose(turned)
    note[ExifTags.Base.Orientation] = orientation
    turned.save(file, exif=note)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_turned_as_its_camera_was(orientation, kind, tmp_path):
    """Upper left red, upper right green, lower left blue, lower right white, whatever the orientation."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    image = Image.fromarray(corners).resize((48, 32), Image.Resampling.NEAREST)
    path = tmp_path / f"a.{kind}"
    with_orientation(image, orientation, path)
    with Image.open(path) as file:
        lazy = open_image(file)
        loaded = open_image(file.convert("RGB"))
    for got in (open_image(path), lazy, open_image(lazy), loaded if kind != "tiff" else lazy):
        assert got.size == (48, 32)
        found = [got.getpixel(place) for place in ((12, 8), (36, 8), (12, 24), (36, 24))]
        assert np.abs(np.array(found) - corners.reshape(4, 3)).max() < 40


def test_an_image_is_not_changed_by_being_opened():
    image = picture(0)
    image.getexif()[ExifTags.Base.Orientation] = 6
    before = image.tobytes()
    assert open_image(image).tobytes() != before
    assert image.tobytes() == before
    assert image.getexif()[ExifTags.Base.Orientation] == 6


# More than 8 bits, and other modes --------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def saved(image: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "image",
    [
        saved(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "png"),
        saved(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "tiff"),
        Image.fromarray((RAMP * 65535).round().astype(np.uint16)),
        Image.fromarray((RAMP * 65535).round().astype(np.int32)),
        Image.fromarray((RAMP * 255).round().astype(np.int32)),
        saved(Image.fromarray(RAMP.astype(np.float32)), "tiff"),
        saved(Image.fromarray((RAMP * 255).astype(np.float32)), "tiff"),
        saved(Image.fromarray((RAMP * 255).round().astype(np.uint8)), "png"),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("LA"),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("LA").convert("La"),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("P"),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("RGBA").convert("RGBa"),
        saved(Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("CMYK"), "tiff"),
        Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert("YCbCr"),
    ],
    ids=lambda image: f"{image.mode}-{image.format}",
)
def test_grey_levels_survive_whatever_the_mode(image):
    got = open_image(image)
    assert got.mode == "RGB"
    assert np.abs(np.asarray(got).astype(float) - RAMP[..., None] * 255).max() <= 1


@pytest.mark.parametrize("brightest", [0, 16 * 257, 65_535])
def test_a_16_bit_picture_is_as_dark_as_its_values(brightest):
    picture = saved(Image.fromarray(np.full((4, 4), brightest, np.uint16)), "png")
    assert np.asarray(open_image(picture)).max() == round(brightest / 257)


@pytest.mark.parametrize(("brightest", "kind"), [(255, np.uint16), (4_095, np.uint16), (1, np.int32)])
def test_values_that_use_few_of_their_bits_are_refused(brightest, kind):
    """12 bits in 16, 8 in 16 or a mask of 0 and 1: the model would see a black picture."""
    picture = Image.fromarray(np.array([[0, brightest]], kind))
    with pytest.raises(InputError, match=rf"its grey values go from 0 to {brightest}, and it is not clear"):
        open_image(picture)


def test_12_bit_tiff():
    grey = Image.fromarray((RAMP * 4095).round().astype(np.uint16))
    file = saved(grey, "tiff")
    file.tag_v2[258] = (12,)
    assert np.abs(np.asarray(open_image(file)).astype(float) - RAMP[..., None] * 255).max() <= 1


def test_one_bit_is_black_and_white():
    assert np.unique(np.asarray(open_image(Image.fromarray(RAMP > 0.5)))).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 7.5, "from 0 to 7.5"),
        (RAMP - 0.5, "from -0.5 to 0.5"),
        (RAMP * 1000, "from 0 to 1000"),
        (np.full((2, 2), np.nan), "from nan"),
        (np.full((2, 2), np.inf), "from inf"),
    ],
)
def test_floats_of_an_unknown_range_are_refused(values, message, tmp_path):
    path = tmp_path / "depth.tiff"
    Image.fromarray(values.astype(np.float32)).save(path)
    with pytest.raises(InputError, match=rf"depth.tiff' is not a readable image: .*{message}"):
        open_image(path)


def test_whole_numbers_of_an_unknown_range_are_refused():
    for values in ([[0, 70_000]], [[-1, 5]]):
        with pytest.raises(InputError, match="grey values go from"):
            open_image(Image.fromarray(np.array(values, np.int32)))


# What is refused --------------------------------------------------------------------------------------------


def png(width: int, height: int, kind: bytes = b"\x08\x02\x00\x00\x00") -> bytes:
    """A PNG of black pixels, of a few bytes however many they are."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">II", width, height) + kind)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(1, 60_000), "1 x 60000 pixels, but a side may be at most 200 times"),
        (png(30_000, 30_000), r"900000000 pixels\) exceeds"),
        (png(10_000, 10_000), r"at most 64,000,000"),
        (png(100, 100), "not a readable image"),  # its data end early
        (b"", "not a readable image"),
        (b"GIF89a", "not a readable image"),
        (b"no picture", "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a readable image"),
    ],
    ids=["strip", "bomb", "large", "short", "empty", "gif", "text", "postscript"],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_refused_in_one_line(data, message, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_and_damaged_files_are_refused_or_read(tmp_path):
    """Nothing but an InputError that names the file comes of cut or changed bytes."""
    random, path = np.random.default_rng(0), tmp_path / "a.bin"
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        buffer = io.BytesIO()
        picture(0, 20, 12).save(buffer, kind)
        whole = buffer.getvalue()
        for trial in range(40):
            data = bytearray(whole[: len(whole) * (trial + 1) // 40])
            for place in random.integers(0, len(data), trial % 5):
                data[place] = random.integers(256)
            path.write_bytes(data)
            assert_read_or_refused(path)


def assert_read_or_refused(path):
    refused = None
    try:
        assert open_image(path).mode == "RGB"
    except InputError as error:
        refused = str(error)
    assert refused is None or str(path) in refused


def test_only_regular_files_are_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    link = tmp_path / "link.png"
    link.symlink_to("/dev/zero")
    for path in (pipe, link, tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match=r"it is a (pipe|device)|Is a directory") as caught:
            open_image(path)
        assert str(path) in str(caught.value)
    for path in ("nowhere.png", tmp_path / "a.png" / "b.png", "a\0b", "a" * 5000):
        with pytest.raises(InputError, match=r"there is no image|not a readable image"):
            open_image(path)


def test_limits_are_set_in_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (900, 2)).save(path)
    with pytest.raises(InputError, match="REGAZE_MAX_ASPECT"):
        open_image(path)
    monkeypatch.setenv("REGAZE_MAX_ASPECT", "500")
    assert open_image(path).size == (900, 2)
    monkeypatch.setenv("REGAZE_MAX_PIXELS", "1000")
    with pytest.raises(InputError, match="at most 1,000 are read"):
        open_image(path)
    monkeypatch.setenv("REGAZE_MAX_PIXELS", "-1")
    with pytest.raises(InputError, match="REGAZE_MAX_PIXELS=-1: expected a number above 0"):
        open_image(path)


@pytest.mark.parametrize("given", [3, None, [picture(0)], 1.5])
def test_other_types_are_refused(given):
    with pytest.raises(InputError, match=f"got {type(given).__name__}"):
        open_image(given)


def test_every_form_of_a_picture_has_the_same_pixels(tmp_path):
    image = picture(3, 20, 10)
    image.save(tmp_path / "a.png")
    content, array = (tmp_path / "a.png").read_bytes(), np.asarray(image)
    tensor = torch.from_numpy(array.copy())
    forms = [
        *(image, tmp_path / "a.png", str(tmp_path / "a.png"), content, bytearray(content), array, tensor),
        *(array.transpose(2, 0, 1), tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255),
        *((array / 255).astype(np.float32), (array / 255).astype(np.float16), array[::-1][::-1]),
        np.dstack([array, np.full((10, 20), 255, np.uint8)]),  # opaque
        (tensor / 255).double().requires_grad_(),
    ]
    for form in forms:
        opened = open_image(form)
        assert (opened.mode, opened.size) == ("RGB", (20, 10))
        assert np.array_equal(np.asarray(opened), array)


def test_arrays_of_one_channel_are_grey():
    grey = np.asarray(picture(3, 20, 10).convert("L"))
    for form in (grey, grey[..., None], torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(open_image(form)), np.dstack([grey] * 3))


def test_the_first_side_of_a_tensor_and_the_last_of_an_array_are_channels():
    values = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert open_image(values).size == (5, 3)
    assert open_image(torch.from_numpy(values)).size == (3, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"got one of shape \[2, 4, 4, 3\]"),
        (np.zeros((5, 4, 2), np.uint8), r"1, 3 or 4 channels; got \[5, 4, 2\]"),
        (torch.full((3, 8, 8), -1.0), "uint8, or floats from 0 to 1; got float32, -1 to -1"),
        (np.full((8, 8, 3), 255.0), "uint8, or floats from 0 to 1; got float64, 255 to 255"),
        (np.full((8, 8, 3), np.nan), "uint8, or floats from 0 to 1; got float64, nan to nan"),
        (np.ones((8, 8, 3), np.int64), "uint8, or floats from 0 to 1; got int64, 1 to 1"),
        (np.zeros((0, 8, 3), np.uint8), r"has pixels, got \[0, 8, 3\]"),
        (b"no picture", "the image.* is not a readable image: it has no format that Pillow knows"),
    ],
)
def test_what_an_array_may_not_be(given, message):
    with pytest.raises(InputError, match=message):
        open_image(given)


def test_a_picture_knows_its_file(tmp_path):
    path = tmp_path / "a.png"
    picture(0, 20, 10).save(path)
    assert describe_image(open_image(open_image(path))) == f"{str(path)!r} (20 x 10 pixels)"
    assert describe_image(open_image(picture(0, 20, 10))) == "the image (20 x 10 pixels)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits of processes")
def test_memory_stays_bounded(tmp_path):
    """Header, size and refusal: nothing of a bomb is decoded."""
    for number, size in enumerate([(1, 60_000), (60_000, 60_000), (2**31 - 1, 1)]):
        (tmp_path / f"{number}.png").write_bytes(png(*size))
    code = (
        "import resource, sys, pathlib\n"
        "from regaze.toolkit.prompts.images import open_image\n"
        "from regaze.errors import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.png')):\n"
        "    try: open_image(path)\n"
        "    except InputError: print('refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    lines = out.stdout.split()
    assert lines[:3] == ["refused"] * 3
    assert int(lines[3]) < 50_000  # KiB
