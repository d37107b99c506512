"""Which prompt a forward runs: its ids and the roles of its tokens, in whatever form the forward receives it.

A forward may be given ids; embeddings that an outer model made from them; the output of an encoder; or images
that `generate` has encoded and whose sizes it has dropped. `PromptSource` remembers what is seen earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.errors import InputError, RegazeError
from regaze.toolkit.model import compat
from regaze.toolkit.model.own_thread import OwnThread
from regaze.toolkit.model.session import Session
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.token_map import TokenMap


class PromptSource:
    """Finds the ids and roles of the prompts of one model."""

    def __init__(self, model: PreTrainedModel, thread: OwnThread):
        self._model, self._thread = model, thread
        self._sessions: Sequence[Session] = ()
        self._media: tuple[str, ...] = ()  # arguments that roles are read from, beside the ids
        self._embedded: Tensor | None = None
        self._generating: tuple[Tensor, TokenMap] | None = None
        self.reader: PromptReader | None = None

    def use(self, sessions: Sequence[Session]) -> None:
        """From now on read prompts as these sessions do."""
        self._sessions, self._generating = sessions, None
        self.reader = next((s.reader for s in sessions if s.reader is not None), None)
        family = None if self.reader is None else self.reader.family
        self._media = ()
        if family is not None and family.image_token_ids:
            self._media = (*family.media_inputs, family.pixels.name)
        # The forwards of an encoder-decoder in `generate` have no ids of the encoder's to read.
        watching = self.reader is not None and (self._media or self._model.config.is_encoder_decoder)
        compat.on_generate(self._model, self._note_generate if watching else None)

    def measuring(self, callback: Any) -> Session:
        """A session of one callback that reads prompts as the open ones do."""
        tokens = next((s.tokens for s in reversed(self._sessions) if s.tokens is not None), None)
        first = self._sessions[0]
        return Session((callback,), tokens, first.read_tokens, first.reader)

    def note_embedded(self, ids: Tensor) -> None:
        """An outer model is about to embed these ids [B, L], and to run the model on the embeddings."""
        self._embedded = ids

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a forward by a decoder's names, with the ids of its embeddings where known."""
        given = dict(compat.decoder_inputs(self._model, given))
        embeds, ids = given.get("inputs_embeds"), self._embedded
        if given.get("input_ids") is not None or embeds is None or ids is None:
            return given
        if ids.shape[1] != embeds.shape[1] or embeds.shape[0] % ids.shape[0]:
            return given
        return {**given, "input_ids": ids.repeat_interleave(embeds.shape[0] // ids.shape[0], 0)}

    def tokens(self, given: Mapping[str, Any]) -> TokenMap | Exception:
        """Roles of the prompt of a forward, or the reason why they are not known.

        The reason is raised where roles are needed: many callbacks need none.
        """
        prompt = compat.prompt_of(given)
        for session in reversed(self._sessions):
            if session.tokens is not None:
                return session.tokens if prompt is None else _fitted(session.tokens, *prompt.shape[:2])
        if prompt is not None and given.get("input_ids") is None:
            return InputError("inputs_embeds have no roles; pass gaze.using(..., tokens=TokenMap(...))")
        announced = None if prompt is None else self._announced(given, prompt)
        if announced is not None:
            return announced
        mask = None if prompt is None else compat.padding_mask(given.get("attention_mask"), prompt.shape[1])
        try:
            return next(s.read_tokens for s in self._sessions if s.read_tokens is not None)(given, mask)
        except RegazeError as error:
            return error

    def encoder_tokens(self, given: Mapping[str, Any]) -> TokenMap | Exception | None:
        """What the encoder reads: ids of this forward, or those that `generate` has encoded before it."""
        if given.get("input_ids") is not None:
            return self.tokens(given)
        output = given.get("encoder_outputs")
        if output is None or self._generating is None:
            return None
        ids, tokens = self._generating
        return tokens.repeat(max(1, len(output[0]) // len(ids)))

    def _note_generate(self, inputs: Mapping[str, Any]) -> None:
        """Read the prompts that `generate` was given, while all of the processor's outputs are there."""
        self._thread.check()
        self._generating = None
        tokens = self.tokens(inputs)
        if isinstance(tokens, TokenMap):
            self._generating = inputs["input_ids"], tokens

    def _announced(self, given: Mapping[str, Any], prompt: Tensor) -> TokenMap | None:
        """The roles of a prompt that `generate` was given, perhaps repeated for beams or samples."""
        if self._generating is None:
            return None
        ids, tokens = self._generating
        copies = max(1, len(prompt) // len(ids))
        # One copy may also be a later call of the model itself, with the same ids and other images.
        unrepeated = copies == 1 and all(given.get(name) is not None for name in self._media)
        if unrepeated or not torch.equal(ids.repeat_interleave(copies, 0), prompt.to(ids.device)):
            return None
        return tokens.repeat(copies)


def _fitted(tokens: TokenMap, batch: int, length: int) -> TokenMap | Exception:
    """A map that the user gave, for a batch that `generate` may have repeated (beams, several samples)."""
    if tokens.length == length and batch % tokens.batch == 0:
        return tokens if tokens.batch == batch else tokens.repeat(batch // tokens.batch)
    return InputError(
        f"the TokenMap is [B={tokens.batch}, L={tokens.length}], but the prompt is [{batch}, {length}]"
    )
