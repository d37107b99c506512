"""Questions about the shipped scenes, answered greedily and, with a file, once for all runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from regaze.bed.scenes import scenes
from regaze.bed.training.scores import Entry
from regaze.eval.run.fingerprint import model_fingerprint
from regaze.eval.run.prefix_cache import PrefixSharing
from regaze.reading import parse_json
from regaze.toolkit.wrap import Gaze
from regaze.writing import LineLog

_BATCH = 32


class Asker:
    """Asks a model; used as a context.

    Args:
        gaze: the model.
        path: a file to which answers are added, batch by batch; those that it has of this model are not asked
            again. One process at a time writes to it; files of several can be joined to one.
    """

    def __init__(self, gaze: Gaze, path: Path | None = None) -> None:
        self.gaze, self._log, self._known = gaze, None, dict[tuple[str, str, int], str]()
        if path is None:
            return
        self._model = model_fingerprint(gaze, "")
        self._log = LineLog(path)
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                entry = parse_json(line.decode(), path, number)
                if entry["model"] == self._model:
                    self._known |= {
                        (image, text, entry["tokens"]): answer for image, text, answer in entry["answers"]
                    }

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._log is not None:
            self._log.close()

    def ask(self, entries: Sequence[Entry], max_new_tokens: int) -> list[str]:
        """Answers in the order of the entries, {"image", "text"}.

        A question that comes twice about an image is asked once, and questions about one image share its
        prefill.
        """
        keys = [(entry["image"], entry["text"], max_new_tokens) for entry in entries]
        self._answer(
            sorted(
                {(image, text) for image, text, _ in keys if (image, text, max_new_tokens) not in self._known}
            ),
            max_new_tokens,
        )
        return [self._known[key] for key in keys]

    def _answer(self, pairs: Sequence[tuple[str, str]], max_new_tokens: int) -> None:
        paths, options = (
            {scene.name: scene.path for scene in scenes()},
            {"max_new_tokens": max_new_tokens, "do_sample": False},
        )
        sharing = PrefixSharing(self.gaze, None, options)
        for start in track(range(0, len(pairs), _BATCH), "answering", transient=True):
            batch = pairs[start : start + _BATCH]
            images, texts = [(paths[image],) for image, _ in batch], [text for _, text in batch]
            if start == 0 and len(set(images)) < len(images):
                sharing.check(images, texts)
            answers = sharing.answer(images, texts, options)
            found = [(image, text, answer) for (image, text), answer in zip(batch, answers, strict=True)]
            self._known |= {(image, text, max_new_tokens): answer for image, text, answer in found}
            if self._log is not None:
                line = {"model": self._model, "tokens": max_new_tokens, "answers": found}
                self._log.append(json.dumps(line, ensure_ascii=False).encode())
