"""What to run and how: benchmarks with the arguments of `generate`, and the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.base import Benchmark
from regaze.eval.run.process_group import ProcessGroup
from regaze.toolkit.model.sampling_choice import with_sampling_choice


@dataclass(frozen=True)
class EvalTask:
    """A benchmark and the arguments of `generate` for it.

    Raises:
        BadParameterError: arguments of `generate` that contradict each other.
    """

    benchmark: Benchmark
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.generate_kwargs:
            given, chosen = dict(self.generate_kwargs), with_sampling_choice(self.generate_kwargs)
            if "do_sample" not in given and not chosen["do_sample"]:
                del chosen["do_sample"]  # greedy is the default: keys of stored answers stay
            object.__setattr__(self, "generate_kwargs", chosen)


def with_check(tasks: Sequence[EvalTask], damage_check: EvalTask | None) -> Sequence[EvalTask]:
    """The tasks, and the damage check at their end where it is none of them."""
    if damage_check is None or damage_check in tasks:
        return tasks
    return [*tasks, damage_check]


@dataclass(frozen=True)
class EvalConfig:
    """How to run. Only `thinking_tokens` can change an answer, and the seed a sampled one.

    Attributes:
        batch_size: requests per batch.
        seed: of sampling and of the bootstrap.
        max_errors: how many questions may fail under one condition before the run stops.
        share_prefix: let questions about one image share its prefill where that is sound.
        process_group: the processes that share the work.
        raise_method_errors: raise the error of a method that cannot run, instead of noting it in the results.
        thinking_tokens: what the limit of each answer is raised by, for the thinking of a reasoning model. An
            answer that needs less for its thinking may be longer.
    """

    batch_size: int = 16
    seed: int = 0
    max_errors: int = 10
    share_prefix: bool = True
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    raise_method_errors: bool = False
    thinking_tokens: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: expected at least 1")
        if self.max_errors < 0:
            raise InputError(f"max errors {self.max_errors}: expected 0 or more")
        if self.thinking_tokens < 0:
            raise InputError(f"thinking tokens {self.thinking_tokens}: expected 0 or more")
