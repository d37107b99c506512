"""Needles: sentences to hide in a long text, each with the question that only it answers."""

from __future__ import annotations

from dataclasses import dataclass

from regaze.errors import BadParameterError


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, and the question that only it answers.

    Attributes:
        text: the sentence that goes into the haystack.
        question: the question about it.
        answer: the words of `text` that answer it, whose copying is scored. Leave out words of the question,
            which a model can produce without attending to the needle.
        cue: beginning of the answer, put before the model's own words; "" for none.
    """

    text: str
    question: str
    answer: str
    cue: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                raise BadParameterError(f"a needle's {name} is a text, got {value!r}")
        if not self.question.strip():
            raise BadParameterError(f"the needle {self.text!r} has no question")
        if not self.answer.strip() or self.text.count(self.answer) != 1:
            raise BadParameterError(
                f"the answer {self.answer!r} must occur exactly once in the needle {self.text!r}"
            )


#: Invented facts: a model that answers has read them.
NEEDLES = (
    Needle(
        "The secret ingredient of the soup at the Harbour Inn is a spoonful of roasted chestnut flour.",
        "What is the secret ingredient of the soup at the Harbour Inn?",
        "a spoonful of roasted chestnut flour",
        "The secret ingredient of the soup at the Harbour Inn is",
    ),
    Needle(
        "The best thing to do in Ostrel is to ride the yellow tram uphill and eat plum cake at sunset.",
        "What is the best thing to do in Ostrel?",
        "ride the yellow tram uphill and eat plum cake at sunset",
        "The best thing to do in Ostrel is to",
    ),
    Needle(
        "Edwin Abernathy moved to the lighthouse because he wanted to count the whales that pass in winter.",
        "Why did Edwin Abernathy move to the lighthouse?",
        "he wanted to count the whales that pass in winter",
        "Edwin Abernathy moved to the lighthouse because",
    ),
)
