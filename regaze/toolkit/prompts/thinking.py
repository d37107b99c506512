"""Thinking in the answers of reasoning models: how it is marked, and the text that follows it.

A model writes its thinking between an opening and a closing tag, then the answer. Many chat templates put the
opening tag into the prompt, so that the answer has the closing tag alone; a model that meets its limit of
tokens in the middle never writes it.
"""

from __future__ import annotations

import re

#: Names of XML-like tags; DeepSeek-R1, Qwen, InternVL, GLM, MiMo, Keye, EXAONE and Seed write some of these.
_NAME = r"(?:seed:think|think(?:ing)?|thoughts?|analysis|reasoning|reason|reflection)"
#: Kimi, Magistral, Sky-T1, Command A and Gemma 4 have forms of their own.
_OPENING = (
    rf"<\s{{0,3}}{_NAME}\s{{0,3}}>|◁\s?think\s?▷|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel>thought"
)
_CLOSING = (
    rf"<\s{{0,3}}/\s{{0,3}}{_NAME}\s{{0,3}}>|◁\s?/\s?think\s?▷|\[/THINK\]|<\|end_of_thought\|>"
    r"|<\|END_THINKING\|>|<channel\|>"
)
_TAG = re.compile(f"(?P<closing>{_CLOSING})|(?:{_OPENING})", re.IGNORECASE)
#: gpt-oss names the channel of each message; where special tokens were dropped only the names are left, as in
#: "analysisThe question is ...assistantfinalYes".
_CHANNEL = re.compile(r"<\|channel\|>\s{0,3}(\w{1,20})[^<]{0,80}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
_BARE_CHANNELS = ("analysis", "assistantfinal")
#: LLaVA-CoT writes its answer in stages, the last of which is the answer.
_STAGES, _CONCLUSION = re.compile(r"\s*<SUMMARY>", re.IGNORECASE), re.compile("<CONCLUSION>", re.IGNORECASE)
#: Special tokens that are kept in decoded answers, because without them thinking cannot be told apart.
_MARKER = re.compile(rf"{_CLOSING}|{_OPENING}|<\|(?:channel|message|start|end|return)\|>", re.IGNORECASE)


class Continued(str):
    """An answer whose prompt ends inside a block of thinking: as the model wrote it, and the block's opening.

    Attributes:
        opening: the opening tag at the end of the prompt.
    """

    __slots__ = ("opening",)
    opening: str

    @classmethod
    def of(cls, text: str, opening: str) -> str:
        """`text` itself where the prompt opened nothing."""
        if not opening:
            return text
        answer = cls(text)
        answer.opening = opening
        return answer


def after_thinking(text: str) -> str | None:
    """What follows the thinking in an answer; None where it was cut off in its thinking.

    That is the text after the last closing tag, whatever stands before it. A text without any tag is returned
    as it is.
    """
    if isinstance(text, Continued):
        text = text.opening + text
    channels = list(_CHANNEL.finditer(text))
    if channels:
        return _final_channel(text, channels)
    first, final = _BARE_CHANNELS
    if text.startswith(first) and final in text:
        return text.rpartition(final)[2]
    if _STAGES.match(text):
        last = max((match.start() for match in _CONCLUSION.finditer(text)), default=None)
        return None if last is None else text[last:]
    rest, is_open = 0, False
    for tag in _TAG.finditer(text):
        is_open = tag["closing"] is None
        if not is_open:
            rest = tag.end()
    return None if is_open else text[rest:]


def _final_channel(text: str, channels: list[re.Match[str]]) -> str | None:
    for channel in reversed(channels):
        if channel[1].lower() == "final":
            end = _CHANNEL_END.search(text, channel.end())
            return text[channel.end() : end.start() if end else len(text)]
    return None


def open_block(text: str) -> str:
    """The opening tag of the block of thinking in which a text ends; "" where it ends in none."""
    opening = ""
    for tag in _TAG.finditer(text):
        opening = "" if tag["closing"] else tag[0]
    return opening


def is_marker(token: str) -> bool:
    """Whether a token marks where thinking begins or ends."""
    return _MARKER.fullmatch(token) is not None
