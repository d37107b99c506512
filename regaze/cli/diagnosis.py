"""What of regaze works on this machine: versions, devices, kernels, optional parts, and one answer."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from regaze.cli import models
from regaze.demo import scenes
from regaze.errors import RegazeError
from regaze.eval.benchmarks.common import language
from regaze.interventions import registry
from regaze.kernels import AttentionEdit
from regaze.kernels.backends import why_not_triton
from regaze.toolkit.load import default_device
from regaze.toolkit.model.compat import release

#: What each extra is for; those of developers are not examined.
_EXTRAS = {
    "triton": "fused kernels",
    "cpu": "edited decode steps in one compiled call on a CPU",
    "eval": "benchmarks from the hub, scorers of captions",
    "quantization": "--model-arg load_in_4bit=true",
    "video": "frames of video files",
    "harness": "regaze lm-eval, lmms-eval",
    "inspect": "regaze's tasks in Inspect",
    "bed": "regaze bed fetch, training of the test bed",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        part: what was examined.
        found: what is there, or what is wrong.
        advice: what to do; empty where the part works.
        required: nothing works without it.
    """

    part: str
    found: str
    advice: str = ""
    required: bool = False

    @property
    def state(self) -> str:
        """ok, missing (an optional part) or broken (a required one)."""
        return "ok" if not self.advice else "broken" if self.required else "missing"


def examine() -> Iterator[Finding]:
    """Examine every part in turn; no exception leaves a part."""
    yield Finding("system", f"{platform.platform()}, Python {platform.python_version()}")
    yield Finding("regaze", version("regaze"))
    yield Finding("torch", torch.__version__)
    yield transformers()
    yield from devices()
    yield kernels()
    yield from extras()
    yield words()
    yield from plug_ins()
    yield demo()


def transformers() -> Finding:
    """The release, and whether it is one that was tested."""
    there = release.installed_release()
    if release.is_tested(there):
        return Finding("transformers", there)
    return Finding(
        "transformers", f"{there} was not tested", f"pip install 'transformers=={release.NEWEST}.*'"
    )


def devices() -> Iterator[Finding]:
    """The processor and each accelerator; the one that models run on by default is marked."""
    chosen = default_device()
    lines = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory, capability = about.total_memory / 2**30, f"{about.major}.{about.minor}"
        lines[f"cuda:{index}"] = f"{about.name}, {memory:.0f} GiB, compute capability {capability}"
    if torch.backends.mps.is_available():
        lines["mps"] = "Apple's GPU"
    for name, about_it in lines.items():
        default = " (default)" if name.split(":")[0] == chosen else ""
        yield Finding(f"device {name}", about_it + default)


def kernels() -> Finding:
    """Whether Triton's kernels run on the default device; torch's do on any."""
    x = torch.zeros(1, 1, 1, 16, device=default_device())
    reason = why_not_triton(x, x, x, AttentionEdit())
    if reason is None:
        return Finding("Triton kernels", f"run on {x.device}")
    if x.device.type == "cpu":
        return Finding("Triton kernels", "not used on the CPU: torch computes the same")
    return Finding("Triton kernels", f"not used on {x.device}: torch computes the same", reason)


def extras() -> Iterator[Finding]:
    """The packages of each extra that this system would get, by what pip knows of the installed regaze."""
    for extra, purpose in _EXTRAS.items():
        wanted = [
            requirement
            for requirement in map(Requirement, requires("regaze") or ())
            if requirement.marker is not None
            and not requirement.marker.evaluate({"extra": ""})
            and requirement.marker.evaluate({"extra": extra})
        ]
        lacking = [problem for requirement in wanted if (problem := _problem(requirement))]
        if lacking:
            yield Finding(f"[{extra}]", f"{', '.join(lacking)}: {purpose}", f"pip install 'regaze[{extra}]'")
        elif wanted:
            there = ", ".join(f"{each.name} {version(each.name)}" for each in wanted)
            yield Finding(f"[{extra}]", f"{there}: {purpose}")


def _problem(requirement: Requirement) -> str | None:
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        return f"no {requirement.name}"
    fits = requirement.specifier.contains(there, prereleases=True)
    return None if fits else f"{requirement.name} {there} is not {requirement.specifier}"


def words() -> Finding:
    """Whether captions can be split into words: by NLTK, its data, and Pattern's rules."""
    try:
        language.lemmas_by_tag(language.tokens("Two dogs ran home."))
        language.singular("dogs")
        language.require_data()
    except RegazeError as error:
        problem, _, advice = str(error).partition(": ")
        return Finding("words of captions", problem, advice or problem)
    return Finding(
        "words of captions", f"NLTK with its data ({language.data_folder('wordnet')}), Pattern's rules"
    )


def plug_ins() -> Iterator[Finding]:
    """Methods of other packages."""
    broken = registry.broken_methods()
    if there := sorted(set(registry.announced()) - {*registry.BUILT_IN}):
        yield Finding("methods of other packages", ", ".join(there))
    for reason in broken:
        yield Finding("methods of other packages", reason, "ask its authors, or remove the package")


def demo() -> Finding:
    """Load the bundled model on the default device and ask it something of which the answer is known."""
    scene = scenes()[0]
    word = scene.objects[0].category
    try:
        gaze = models.load_model("demo", None, None)
        with gaze.recording() as record:
            (answer,) = gaze.ask([scene.image()], [f"Is there a {word} in the image?"])
        layers = len(record[0].layers)
    except Exception as error:  # whatever does not work here
        return Finding(
            "demo model", f"{type(error).__name__}: {error}", "regaze demo --debug shows more", required=True
        )
    if answer != "Yes":
        return Finding(
            "demo model", f"answers {answer!r} instead of 'Yes'", "try --device cpu", required=True
        )
    return Finding("demo model", f"answers as it should, {layers} layers recorded")
