"""Videos in the place of images: some frames of a file, evenly spaced, or of a folder of images.

Files are decoded by PyAV (the FFmpeg libraries), which the extra `video` installs; folders need nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regaze.caching import cached_property
from regaze.errors import BadParameterError, InputError
from regaze.reading import hash_file, open_regular
from regaze.toolkit.prompts.images import open_image

#: Frames of a video, at most; a model has tokens for far fewer.
MAX_FRAMES = 1_024
#: Frames that are looked through, at most: nine hours at 30 frames per second.
MAX_DECODED = 1_000_000
_IMAGE = re.compile(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)
#: What FFmpeg may take a file for: no lists of other files and addresses.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,gif,m4v,h264,hevc,ivf"


@dataclass(frozen=True)
class Video:
    """A video in the place of an image.

    Attributes:
        path: A file, or a folder whose images are the frames in the order of the numbers in their names.
        frames: How many frames a model sees, from the first to the last in even steps. Those of a shorter
            video are repeated: some models take only batches of videos of one length.
    """

    path: Path
    frames: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not isinstance(self.frames, int) or not 1 <= self.frames <= MAX_FRAMES:
            raise BadParameterError(f"frames of a video: 1 to {MAX_FRAMES}, got {self.frames!r}")

    @property
    def name(self) -> str:
        """Name of the file or folder."""
        return self.path.name

    def digest(self) -> list[Any]:
        """What tells its frames from those of others: hashes of bytes, and how many are taken."""
        paths = _images(self.path) if os.path.isdir(self.path) else [self.path]
        return ["video", self.frames, *(hash_file(path, "video ") for path in paths)]


@dataclass(frozen=True)
class Clip:
    """The frames of a video that a model sees.

    Attributes:
        frames: In RGB, all of one size.
        indices: Their numbers in the video, from 0.
        total: How many frames the video has.
        rate: Frames per second of the video; None where it is not known.
    """

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    total: int
    rate: float | None = None

    @cached_property
    def pixels(self) -> np.ndarray:
        """[frames, height, width, 3] uint8."""
        return np.stack([np.asarray(frame) for frame in self.frames])

    @property
    def metadata(self) -> dict[str, Any]:
        """As the video processors of transformers take it."""
        return {"total_num_frames": self.total, "fps": self.rate, "frames_indices": list(self.indices)}


def open_video(video: Video) -> Clip:
    """The chosen frames.

    Raises:
        InputError: No such file or folder, one without frames, frames of different sizes, a file that PyAV
        cannot
            decode, or PyAV is not installed.
    """
    clip = _read_folder(video) if os.path.isdir(video.path) else _decode(video)
    sizes = {frame.size for frame in clip.frames}
    if len(sizes) > 1:
        raise InputError(f"video {video.path}: its frames have different sizes, {sorted(sizes)}")
    return clip


def spread(total: int, count: int) -> list[int]:
    """Indices of `count` of `total` frames in even steps from first to last; a single one is the middle."""
    if count == 1:
        return [(total - 1) // 2]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _read_folder(video: Video) -> Clip:
    paths = _images(video.path)
    indices = spread(len(paths), video.frames)
    return Clip(tuple(open_image(paths[i]) for i in indices), tuple(indices), len(paths))


def _images(folder: Path) -> list[Path]:
    """The images in a folder, in the order of the numbers in their names."""
    paths = [path for path in folder.iterdir() if _IMAGE.search(path.name)]
    if not paths:
        raise InputError(f"video {folder} is a folder without images")
    return sorted(paths, key=_numbers)


def _numbers(path: Path) -> tuple[list[int], str]:
    """By which "frame10.jpg" follows "frame9.jpg"."""
    return [int(number[-18:]) for number in re.findall(r"\d+", path.name)], path.name


def _decode(video: Video) -> Clip:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"video {video.path} is decoded by PyAV: pip install 'regaze[video]'; a folder with its frames "
            "as images needs nothing"
        ) from error
    try:
        with (
            open_regular(video.path, "video ") as file,
            av.open(file, options={"format_whitelist": _CONTAINERS}) as container,
        ):
            if not container.streams.video:
                raise InputError(f"video {video.path} has sound alone")
            stream = container.streams.video[0]
            packets = islice(container.demux(stream), MAX_DECODED)
            total = sum(packet.size > 0 for packet in packets)
            container.seek(0)
            wanted = spread(total, video.frames) if total else []
            found = dict(_take(container.decode(stream), wanted))
            rate = float(stream.average_rate) if stream.average_rate else None
    except (OSError, ValueError, av.FFmpegError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"video {video.path} cannot be read: {_reason(error)}") from error
    if not found:
        raise InputError(f"video {video.path} has no frames")
    last = max(found)  # a damaged end lacks some
    indices = tuple(index if index in found else last for index in wanted)
    return Clip(tuple(found[index] for index in indices), indices, total, rate)


def _take(frames: Any, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """The wanted frames with their numbers, upright; without those that a damaged end lacks."""
    left = set(wanted)
    for index, frame in enumerate(frames):
        if index in left:
            left.remove(index)
            yield index, open_image(frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True))
        if not left:
            return


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
