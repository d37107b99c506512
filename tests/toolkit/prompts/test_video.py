"""Videos in the place of images: which frames are taken, from files and folders; what models make of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from zoo.videos import FAMILIES, gaze_with_videos

import regaze
from regaze.errors import BadParameterError, InputError
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.prompts.video import Video, open_video, spread

QUESTION = "Is there a dog in the video?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve frames, each brighter than the one before."""
    path = tmp_path_factory.mktemp("frames")
    for i in range(12):
        Image.new("RGB", (84, 56), (20 * i,) * 3).save(path / f"frame{i}.png")
    (path / "notes.txt").write_text("no frame")
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Two frames."""
    path = tmp_path_factory.mktemp("short")
    for i in range(2):
        Image.new("RGB", (84, 56), (250 * i,) * 3).save(path / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def built():
    """A handle on a tiny model that takes videos, by name; each is built once."""
    models = {}

    def build(name):
        if name not in models:
            models[name] = gaze_with_videos(name)
        return models[name]

    return build


def brightness(clip):
    return [np.asarray(frame)[0, 0, 0] for frame in clip.frames]


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [
        (12, 4, [0, 4, 7, 11]),
        (12, 1, [5]),
        (3, 5, [0, 0, 1, 2, 2]),
        (1, 1, [0]),
        (9, 2, [0, 8]),
        (5, 5, [*range(5)]),
    ],
)
def test_frames_are_spread_from_first_to_last(total, count, indices):
    assert spread(total, count) == indices


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(folder):
    clip = open_video(Video(folder, 12))
    assert brightness(clip) == [20 * i for i in range(12)]
    few = open_video(Video(folder, 3))
    assert (few.indices, few.total, few.rate) == ((0, 6, 11), 12, None)
    assert few.pixels.shape == (3, 56, 84, 3)


def test_a_folder_needs_images_of_one_size(tmp_path):
    with pytest.raises(InputError, match="is a folder without images"):
        open_video(Video(tmp_path))
    for i in range(2):
        Image.new("RGB", (10 + i, 10)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="its frames have different sizes"):
        open_video(Video(tmp_path))


@pytest.mark.parametrize("frames", [0, 2000, 1.5])
def test_the_number_of_frames_is_checked(folder, frames):
    with pytest.raises(BadParameterError, match="frames of a video: 1 to 1024"):
        Video(folder, frames)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pip install 'regaze\[video\]'"):
        open_video(Video(tmp_path / "a.mp4"))


def test_a_video_is_told_from_others_by_its_bytes_and_frames(folder, tmp_path):
    one = tmp_path / "a.mp4"
    one.write_bytes(b"x")
    assert Video(one).digest() == Video(one, 8).digest() != Video(one, 4).digest()
    before = Video(one).digest()
    one.write_bytes(b"y")
    assert Video(one).digest() != before
    assert len(Video(folder).digest()) == 2 + 12


# Files --------------------------------------------------------------------------------------------------


def write_video(av, path, count=30):
    """Frames from black to white, ten per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(count):
            pixels = np.full((48, 64, 3), i * 255 // (count - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_frames_of_a_file(tmp_path, ending):
    av = pytest.importorskip("av")
    path = tmp_path / f"a.{ending}"
    write_video(av, path)
    clip = open_video(Video(path, 5))
    assert (clip.indices, clip.total, clip.rate) == ((0, 7, 14, 22, 29), 30, 10.0)
    assert brightness(clip) == pytest.approx([i * 255 / 29 for i in clip.indices], abs=6)
    assert clip.metadata == {"total_num_frames": 30, "fps": 10.0, "frames_indices": [0, 7, 14, 22, 29]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        b"#EXTM3U\n#EXTINF:3,\na.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'a.mp4'\n",
    ],
)
def test_files_that_are_no_video_and_lists_of_files_are_refused(tmp_path, content):
    av = pytest.importorskip("av")
    write_video(av, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"video .*b\.mp4 cannot be read"):
        open_video(Video(tmp_path / "b.mp4"))
    with pytest.raises(InputError, match=r"video .*c\.mp4 cannot be read: No such file"):
        open_video(Video(tmp_path / "c.mp4"))


# Models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "views"), [*zip(FAMILIES, (2, 2, 4, 4), strict=True)])
def test_frames_are_tokens_of_a_video(built, folder, name, views):
    """Qwen-VL merges two frames."""
    gaze = built(name)
    inputs = gaze.inputs([Video(folder, 4), None], [QUESTION, QUESTION])
    assert "pixel_values_videos" in inputs
    assert "pixel_values" not in inputs
    tokens = gaze.tokens(inputs)
    assert [(view.image, view.frame) for view in tokens.views[0]] == [(0, i) for i in range(views)]
    assert tokens.views[1] == ()
    asked = gaze.reader.tokenizer.decode(inputs["input_ids"][0][tokens.roles[0] == Role.QUERY])
    assert asked.strip() == QUESTION


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_about_videos_do_not_depend_on_the_batch(built, folder, short, name):
    gaze, videos = built(name), [Video(folder, 4), Video(short, 4), None]
    questions = [QUESTION, "Is it light?", QUESTION]
    together = gaze.ask(videos, questions, max_new_tokens=4)
    assert together == gaze.ask(videos, questions, max_new_tokens=4, batch_size=1)


def test_another_video_gives_other_logits(built, folder, tmp_path):
    gaze = built("qwen2_vl")
    for i in range(4):
        Image.new("RGB", (84, 56), "red").save(tmp_path / f"{i}.png")
    with torch.no_grad():
        dark, red = (
            gaze.model(**gaze.inputs(Video(path, 4), QUESTION)).logits[0, -1] for path in (folder, tmp_path)
        )
    assert not torch.allclose(dark, red, atol=1e-4)


def test_methods_act_on_the_tokens_of_videos(built, folder):
    gaze = built("llava_next_video")
    inputs = gaze.inputs(Video(folder, 4), QUESTION)
    with torch.no_grad():
        before = gaze.model(**inputs).logits
        with gaze.using(regaze.PAI(alpha=2.0, gamma=1.0)):
            after = gaze.model(**inputs).logits
    assert not torch.allclose(before, after, atol=1e-4)


def test_a_model_without_tokens_for_videos_sees_frames_as_images(gaze, folder):
    """The folder's `gaze` is LLaVA."""
    frames = [folder / f"frame{i}.png" for i in (0, 6, 11)]
    as_video = gaze.inputs([Video(folder, 3)], [QUESTION])
    as_images = gaze.inputs([frames], [QUESTION])
    assert as_video.keys() == as_images.keys()
    assert all(torch.equal(as_video[key], as_images[key]) for key in as_video)


def test_methods_of_several_passes_refuse_videos(gaze, folder):
    with pytest.raises(InputError, match="CARVE asks about images in several passes, and takes no videos"):
        gaze.ask([Video(folder, 3)], [QUESTION], method=regaze.CARVE())
