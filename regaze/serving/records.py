"""Records of served requests: statistics of a request, as `gaze.recording` gives them of a generation.

A request asks for one by the key "regaze_record" beside "regaze": True, the options of `RecordOptions` as a
mapping, or the JSON text of either. vLLM's answers have no room for tensors, so the process that runs the
model writes a file, named by the id of the request, into the folder that REGAZE_SERVING_RECORDS names, when
the request has ended.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regaze.errors import BadParameterError, InputError, RecordingError
from regaze.reading import StrPath, parse_json
from regaze.serving.common.release import KEY
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.record.options import RecordOptions
from regaze.toolkit.record.record import Record

#: The key of `extra_args` and of `vllm_xargs`.
RECORD_KEY = "regaze_record"
#: The environment variable with the folder of the records.
FOLDER = "REGAZE_SERVING_RECORDS"
#: Of the statistics of one request.
MAX_BYTES = 2**30


def record_of(request_id: str, folder: StrPath | None = None, wait: float = 10.0) -> Record:
    """The record of a request that has ended.

    Args:
        request_id: of vLLM's output; over HTTP the `id` of a chat's answer, and of a completion's its `id`
            and the number of the prompt, "cmpl-...-0".
        folder: of the records; None: that of the environment variable REGAZE_SERVING_RECORDS.
        wait: seconds until it has to be there: an engine in several processes writes it in its next step.

    Raises:
        RecordingError: there is none.
    """
    file, end = file_of(request_id, folder), time.monotonic() + wait
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return Record.load(file)


def file_of(request_id: str, folder: StrPath | None = None) -> Path:
    """Where the record of a request is. Raises InputError without a folder, or for an id that names none."""
    folder = folder or os.environ.get(FOLDER)
    if not folder:
        raise InputError(f"records need a folder: start the engine with {FOLDER}=FOLDER in its environment")
    if not re.fullmatch(r"\w[\w.-]{0,199}", request_id, re.ASCII):  # it may be the sender's choice
        raise InputError(
            f"a recorded request has an id of letters, digits, '.', '_' and '-', got {request_id!r}"
        )
    return Path(folder) / f"{request_id}.safetensors"


def new_file(request_id: str) -> Path:
    """Where a request that begins will be recorded.

    Raises:
        InputError: as `file_of`; or its record is there already, since its sender may have chosen the id.
    """
    file = file_of(request_id)
    if file.exists():
        raise InputError(
            f"{file} is there already, and no request replaces the record of another: give the request an id "
            "of its own, or start the engine with an empty folder"
        )
    return file


def options_of(asked: Any, config: Any) -> RecordOptions | None:
    """What a request wants to be recorded; None: nothing.

    Args:
        config: that of the whole model.

    Raises:
        BadParameterError, RecordingError: it is not known, or cannot be recorded.
    """
    if isinstance(asked, str):
        asked = parse_json(asked, f"the request's {RECORD_KEY!r}")
    if asked is None or asked is False:
        return None
    if asked is True:
        asked = {}
    if not isinstance(asked, Mapping):
        raise BadParameterError(
            f'{RECORD_KEY} is true, or options of a recording such as {{"entropy": true}}, got {asked!r}'
        )
    unknown = [name for name in asked if name not in RecordOptions.__dataclass_fields__]
    if unknown:
        raise RecordingError(
            f"cannot record {', '.join(map(str, unknown))}; choose from "
            f"{', '.join(RecordOptions.__dataclass_fields__)}"
        )
    return RecordOptions.for_model(ServedModel(config), **asked)


def check_size(options: RecordOptions, config: Any, prompt: int, answer: int) -> None:
    """Refuse a record that could fill the memory of the engine, which other requests share.

    Args:
        config: that of the language model. prompt, answer: numbers of tokens, of the answer the most.

    Raises:
        RecordingError: it may be larger than MAX_BYTES.
    """
    layers = config.num_hidden_layers if options.layers is None else len(options.layers)
    rows = {"last": 1, "text": prompt, "all": prompt}.get(str(options.rows), options.rows)
    columns = len(Role) + 5 + (prompt + answer if options.slices else 0)
    size = 4 * layers * config.num_attention_heads * (min(int(rows), prompt) + answer) * columns
    if size > MAX_BYTES:
        raise RecordingError(
            f"this record may take {size / 2**20:.0f} MiB, and one request at most {MAX_BYTES // 2**20}: "
            "ask for a lower max_tokens, fewer layers or rows, or no slices"
        )


class ServedModel:
    """As much of a model as recordings read."""

    def __init__(self, config: Any):
        self.config = config


def packed(options: RecordOptions, file: Path) -> dict[str, Any]:
    """What a request carries to the process that runs the model, as plain values."""
    return {
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(options).items()
        },
        "file": str(file),
    }


def unpacked(carried: Mapping[str, Any]) -> tuple[RecordOptions, str]:
    """Inverse of `packed`."""
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in carried["options"].items()
    }
    return RecordOptions(**options), carried["file"]


def is_recorded(params: Any) -> bool:
    """Whether a request with these sampling parameters, as admission left them, is recorded."""
    extra = None if params is None else params.extra_args
    carried = (extra or {}).get(KEY)
    return isinstance(carried, Mapping) and "record" in carried
