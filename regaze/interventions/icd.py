"""ICD: instruction contrastive decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Annotated, ClassVar

from PIL import Image
from pydantic import Field

from regaze.errors import InputError
from regaze.interventions.contrastive import Contrastive
from regaze.interventions.facts import Facts
from regaze.toolkit.model.branches import rewritten
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.prompt_reader import PromptReader
from regaze.toolkit.prompts.questions import rendered_tokens
from regaze.toolkit.prompts.token_map import PromptTokens, Role

#: Roles that disturb the model, in the sense of the five that the paper tries; the sentences are ours.
PREFIXES = {
    "objects": "Act as a detector that lists each and every object.",
    "attributes": "Act as a detector that tells objects by shape, colour and how they stand to each other.",
    "unspecific": "Act as a detector that never says exactly which thing it has found.",
    "confused": "Act as a muddled detector whose account of the picture is blurred and unsure.",
    "overview": "Act as a detector that gives no more than a rough overview.",
}

_PROBE = "Which?"
#: (width, height) of images whose grids differ in both numbers.
_SHAPES = ((224, 224), (448, 112), (112, 448))


@dataclass(frozen=True)
class ICD(Contrastive):
    """Contrast with the same image under an instruction that disturbs the model.

    Source: Wang et al., "Mitigating Hallucinations in Large Vision-Language Models with Instruction
    Contrastive Decoding" (arXiv:2403.18715). The branch's prompt begins with a role for the model: it
    replaces the system message or, where there is none, is a separate line before the question. A prompt has
    a system message if its tokens before image and question differ from those of the bare chat template. Also
    works without an image, and together with VCD (three contexts).
    """

    name: ClassVar[str] = "icd"
    summary: ClassVar[str] = "contrast with an instruction that disturbs the model"
    source: ClassVar[str] = "arXiv:2403.18715"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = "two rows per prompt in one forward, with the cache of both"
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="two rows", needs=("second context",))
    release: ClassVar[str] = (
        "p1k0pan/ICD, Apache-2.0. Its branches are correct. The prefix of InstructBLIP's Q-former is absent."
    )
    needs_image: ClassVar[bool] = False

    prefix: Annotated[str, Field(pattern=r"\S", description="a text that is not blank")] = field(
        default="confused",
        metadata={"help": f"role of the negative branch: {', '.join(PREFIXES)}, or a sentence of your own"},
    )

    def negative(self, context: Context) -> Branch:
        def rewrite(row: int, ids: list[int], sample: PromptTokens) -> tuple[list[int], PromptTokens]:
            return prefixed(ids, sample, PREFIXES.get(self.prefix, self.prefix.strip()), context.reader)

        return rewritten(context, rewrite)


def prefixed(
    ids: Sequence[int], sample: PromptTokens, prefix: str, reader: PromptReader
) -> tuple[list[int], PromptTokens]:
    """An unpadded prompt and its roles, with `prefix` for a system message or before the question.

    Raises:
        InputError: the prompt has no question.
    """
    if Role.QUERY not in sample.roles:
        raise InputError("ICD puts an instruction before the question, but a prompt has no question")
    first = next(i for i, role in enumerate(sample.roles) if role in (Role.IMAGE, Role.QUERY))
    images = sample.images
    templated = getattr(reader.processor, "chat_template", None) is not None
    head = list(ids[:first])
    written = _written(reader) if templated and sample.roles[first] == Role.IMAGE else []
    if templated and not _starts_bare(head, _opening(reader, images, None), written):
        found = (i for i in range(first - len(written), -1, -1) if head[i : i + len(written)] == written)
        stop = next(found, first)
        start, new = 0, _opening(reader, images, prefix)
    else:
        start = stop = sample.roles.index(Role.QUERY)
        new = _line(reader, images, prefix)
    role = Role.SEPARATOR if start > first else Role.SYSTEM

    def splice(values: Sequence[int], inserted: Sequence[int]) -> tuple[int, ...]:
        return (*values[:start], *inserted, *values[stop:])

    nowhere = [-1] * len(new)
    roles = splice(sample.roles, [int(role)] * len(new))
    places = splice(sample.view, nowhere), splice(sample.cell, nowhere)
    return list(splice(ids, new)), PromptTokens(roles, *places, sample.views)


def _opening(reader: PromptReader, images: int, system: str | None) -> list[int]:
    """Tokens of the chat template before image and question."""
    prompt, tokens = rendered_tokens(reader, _PROBE, images, system)
    end = min(prompt.span[0], prompt.text.index(reader.image_placeholder) if images else len(prompt.text))
    return [token for token, _ in takewhile(lambda each: each[1][1] <= end, tokens)]


@lru_cache(maxsize=4)
def _written(reader: PromptReader) -> list[int]:
    """Tokens that the processor itself inserts before any image, after the opening of the template.

    Some name the size of the image after these (Emu3, Apertus).
    """
    text, opening = reader.render(_PROBE, 1).text, len(_opening(reader, 1, None))
    headers = []
    for size in _SHAPES:
        ids = reader.tokenise([text], [[Image.new("RGB", size)]])["input_ids"][0].tolist()
        headers.append(ids[opening : reader.family.image_mask(ids).index(True)])
    common = takewhile(lambda each: len(set(each)) == 1, zip(*headers, strict=False))
    return [token for token, *_ in common]


def _starts_bare(head: list[int], opening: list[int], written: list[int]) -> bool:
    """Whether the tokens before an image or question are those of the template without a system message.

    The tokens that precede every image may be followed by the name of its first tile.
    """
    return head[: len(opening + written)] == opening + written if written else head == opening


def _line(reader: PromptReader, images: int, text: str) -> list[int]:
    """Tokens of a line of text at the position of the question."""
    prompt, tokens = rendered_tokens(reader, f"{text}\n{_PROBE}", images, None)
    start, stop = prompt.span[0], prompt.span[1] - len(_PROBE)
    return [token for token, (first, last) in tokens if first < stop and last > start]
