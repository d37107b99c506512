"""Questions about the demo's scenes, to transformers and to an engine of vLLM."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

import regaze
from regaze.demo import IMAGE_DIR, questions_file
from regaze.interventions import Method, registry

#: Tokens of each answer.
TOKENS = 16


#: Parameters with which each method changes answers of the demo model.
METHODS: dict[str, dict[str, Any]] = {
    "adhh": {"heads": [[0, 3], [0, 5], [1, 0]], "threshold": 0.2},
    "attnreal": {"above": 1.0, "rho": 0.0},
    "cai": {"layers": [3, 5], "threshold": 0.0},
    "causalmm": {},
    "deco": {"alpha": 2.0},
    "dola": {},
    "eah": {"threshold": 0.001},
    "farsight": {"sigma": 0.1},
    "flb": {"gamma": 2.0, "decay": 0.5},
    "gift": {},
    "hgai": {"alpha": 2.0},
    "icd": {},
    "knockout": {"heads": [[0, 0], [0, 3]]},
    "m3id": {"decay": 0.3, "kappa": 1.0},
    "mma": {"trained": True},
    "moa": {"alpha": 4.0, "beta": 0.1, "block": 8},
    "pai": {"gamma": 1.0, "alpha": 0.8},
    "ritual": {},
    "sid": {},
    "sparc": {"alpha": 1.5, "tau": 0.1},
    "spin": {"kept": 0.25},
    "vaf": {"enhance": 2.0, "suppress": 0.3},
    "var": {"rho": 0.2},
    "vcd": {},
    "vista": {"strength": 0.0, "share": 0.9},
}


def named(name: str) -> dict[str, Any]:
    """A method with these parameters, in its JSON form."""
    return {"method": name, **METHODS[name]}


@dataclass
class Asked:
    """Questions, their images, and the model under transformers, whose answers it remembers."""

    gaze: regaze.Gaze
    images: list[Image.Image]
    questions: list[str]
    known: dict[str, list[list[int]]] = field(default_factory=dict)

    @classmethod
    def first(cls, count: int) -> Asked:
        """The first so many questions of POPE about the demo's scenes, every third as a caption."""
        rows = [json.loads(line) for line in questions_file("random").read_text().splitlines()][:count]
        images = [Image.open(IMAGE_DIR / row["image"]).convert("RGB") for row in rows]
        questions = [row["text"] if i % 3 else "Describe the image." for i, row in enumerate(rows)]
        model, processor = regaze.load("demo")
        return cls(regaze.wrap(model.to(torch.float32).eval(), processor), images, questions)

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """As vLLM takes them."""
        texts = [self.gaze.reader.render(question, 1).text for question in self.questions]
        return [
            {"prompt": text, "multi_modal_data": {"image": image}}
            for text, image in zip(texts, self.images, strict=True)
        ]

    def by_transformers(self, *methods: dict[str, Any], tokens: int = TOKENS) -> list[list[int]]:
        """Tokens of greedy answers, up to the end, of `gaze.using` with methods in their JSON form."""
        key = json.dumps([methods, tokens], sort_keys=True)
        if key not in self.known:
            made: list[Method] = [registry.method_from_dict(method) for method in methods]
            if made:
                with self.gaze.using(*made):
                    self.known[key] = self._generate(tokens)
            else:
                self.known[key] = self._generate(tokens)
        return self.known[key]

    def _generate(self, tokens: int) -> list[list[int]]:
        inputs = self.gaze.inputs([[image] for image in self.images], self.questions)
        with torch.inference_mode():
            ids = self.gaze.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        end = self.gaze.model.generation_config.eos_token_id
        rows = ids[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]


@contextmanager
def engines(folder: Any) -> Iterator[Callable[..., Any]]:
    """Starts small engines on the CPU, without compilation, all of which end where the block does.

    All engines of a process share its groups of workers: whichever ends first ends the others. One that is
    only dropped, and that frames of a caught error refer to, ends when garbage is collected, be it while the
    next one starts.
    """
    from vllm import LLM

    limits = {"max_model_len": 512, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 1}}
    small = {"dtype": "float32", "enforce_eager": True, "block_size": 32, **limits}
    with ExitStack() as stack:

        def start(**options: Any) -> Any:
            engine = LLM(str(folder), **{**small, **options})
            stack.callback(engine.llm_engine.engine_core.shutdown)
            return engine

        yield start
    gc.collect()


def by_engine(
    engine: Any, asked: Asked, extra: list[Any], tokens: int = TOKENS, **salt: Any
) -> list[list[int]]:
    """Tokens of greedy answers by an engine.

    Args:
        extra: for each question what `extra_args` has; None: nothing.
        salt: more of every prompt.
    """
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=tokens, extra_args=each) for each in extra]
    outputs = engine.generate(asked.prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def answers(engine: Any, asked: Asked, extra: dict[int, Any]) -> list[tuple[str, list[int]]]:
    """How the greedy answer to each question ended, and its tokens.

    Args:
        extra: the methods of questions, by their numbers.
    """
    from vllm import SamplingParams

    given = [None if (one := extra.get(i)) is None else {"regaze": one} for i in range(len(asked.questions))]
    params = [SamplingParams(temperature=0, max_tokens=TOKENS, extra_args=each) for each in given]
    outputs = [output.outputs[0] for output in engine.generate(asked.prompts, params, use_tqdm=False)]
    return [(output.finish_reason, list(output.token_ids)) for output in outputs]


def mixed(methods: list[dict[str, Any]], count: int) -> list[Any]:
    """`extra_args` of requests with these methods, of which every fourth has none."""
    return [None if number % 4 == 3 else {"regaze": methods} for number in range(count)]
