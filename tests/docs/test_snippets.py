"""Every code block and command of the pages runs, and prints what the page shows."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from snippets import pages, programs, props, regaze_command, sentences, shell
from snippets.runner import PageRun
from sybil.example import SybilFailure

from regaze import demo

PAGES = {pages.name(page): pages.examples(page) for page in pages.pages()}
#: A page with slow blocks is run without them, and once more with all.
RUNS = [
    pytest.param(name, whole, id=f"{name}-whole" if whole else name, marks=[pytest.mark.exhaustive] * whole)
    for name, examples in PAGES.items()
    for whole in (False, True)
    if (any(example.parsed.slow for example in examples) if whole else examples)
    and not pages.is_generated(pages.ROOT / name)
]

#: {page: {reason: how many blocks, or commands of the blocks whose other lines run}}
SKIPPED = {
    "docs/audit.md": {"hours of a CPU; the bed needs its base": 1, "needs an audit": 1},
    "docs/comparison.md": {"takes hours; its figures are read from the committed results": 1},
    "docs/guide/answers.md": {"needs answers by VLMEvalKit": 1, "needs answers by lmms-eval": 1},
    "docs/guide/bed.md": {"downloads": 1, "needs SmolLM2": 1},
    "docs/guide/command-line.md": {"needs bitsandbytes, which is not among what the tests install": 1},
    "docs/guide/harness.md": {"downloads": 1, "needs lm_eval": 2},
    "docs/guide/questions.md": {"downloads": 5, "needs the files of PhD": 1, "needs videos": 1},
    "docs/guide/retrieval-heads.md": {"its stand-in, with random weights, finds no needle": 2},
    "docs/recipes/find-heads.md": {"its stand-in, with random weights, finds no needle": 1},
    "docs/recipes/reproduce.md": {"needs the model's weights": 1},
    "docs/recipes/your-model.md": {"needs bitsandbytes, which is not among what the tests install": 2},
    "docs/serving.md": {"needs vLLM": 6},
    "docs/start.md": {"downloads": 1},
    "docs/studies/real-models.md": {"needs Whisper's weights and a recording": 1},
    "docs/studies/speech.md": {
        "needs a speech model and a recording; tests/toolkit/analysis has it with random weights": 1
    },
}

needs_demo = pytest.mark.skipif(not demo.MODEL_DIR.is_dir(), reason="the demo model is not in this checkout")


def problems(page, folder, whole=False):
    """What sybil says of the blocks of a page, run in the folder."""
    found = []
    props.provide(folder, page.read_text(encoding="utf-8"))
    with PageRun(page, folder, slow=whole).open() as run:
        for example in pages.examples(page, run):
            try:
                example.evaluate()
            except SybilFailure as failure:
                found.append(str(failure))
    return found


@needs_demo
@pytest.mark.parametrize(("name", "whole"), RUNS)
def test_page(name, whole, tmp_path):
    folder = tmp_path / "page"  # what is beside it belongs to the page, too
    folder.mkdir()
    found = problems(pages.ROOT / name, folder, whole)
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("name", PAGES)
def test_sentences_name_what_there_is(name):
    page = pages.ROOT / name
    scripts = {each.parsed.title for each in PAGES[name]}
    found = sentences.problems(page.read_text(encoding="utf-8"))
    assert [problem for problem in found if not any(f"python {title}`" in problem for title in scripts)] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("See `regaze evalute`.", "there is no command 'evalute'"),
        ("By `regaze fit vti --dta x`.", "fit has no --dta"),
        ("By `make coffee`.", "Makefile has no target coffee"),
        ("By `python benchmarks/none.py`.", "there is no such script or module"),
        ("By `python benchmarks/pages.py --chek`.", "it has no --chek"),
        ("With `--no-damage`.", "no command or script has --no-damage"),
    ],
)
def test_what_sentences_name_and_is_not_there_is_seen(text, problem):
    right = (
        "`regaze fit METHOD -o FILE`, `make test`, `python -m regaze.interventions.methods_page`, `--limit 3`"
    )
    (found,) = sentences.problems(f"{right} {text}")
    assert problem in found


def skipped(examples):
    """What SKIPPED says of a page."""
    found = Counter()
    for block in (each.parsed for each in examples):
        if block.skipped():
            found[block.skipped().reason] += 1
        elif block.skips:
            commands = [str(command) for command in shell.commands(block.source)]
            found.update(skip.reason for skip in map(block.skipped, commands) if skip)
            assert all(any(skip.only in command for command in commands) for skip in block.skips)
    return found


def test_what_is_skipped():
    """A new skip is a change here; those of regaze are parsed all the same."""
    found = {name: dict(skipped(examples)) for name, examples in PAGES.items()}
    assert {name: skips for name, skips in found.items() if skips} == SKIPPED


@pytest.mark.parametrize("name", PAGES)
def test_commands_stand_between_fences(name):
    """What is only indented is nothing that is run here."""
    text, fences = (pages.ROOT / name).read_text(encoding="utf-8"), PAGES[name]
    for fence in reversed(fences):
        text = text[: fence.region.start] + text[fence.region.end :]
    programs_or_python = rf"(?:{'|'.join(programs.CHECKS)}) -{{0,2}}\w|import \w|from [\w.]+ import"
    assert re.findall(rf"^(?: {{4}}|\t)\s*(?:{programs_or_python}).*", text, re.MULTILINE) == []


GOOD = """
```python
from dataclasses import dataclass

@dataclass
class Cat:
    lives: int = 9
```

```python
print(Cat())
print("took", 12.5, "s")
```

```text
Cat(lives=9)
took 3 s
```

```python
print("Confounds: length +9%, memory +27%")
print("| a | 1 | 2 s | memory +3% |")
```

<!-- output -->
| a | 2 s | |

<!-- skip: needs a network -->
```bash
regaze evaluate pope --data hub   # not run
```

<!-- skip: needs a GPU -->
```python
import package_that_is_not_installed.part
from regaze import load
1 / 0
```

<!-- setup
hidden = 3
-->

```pycon
>>> hidden + 1
4
```

```python title="mine.py"
VALUE = 7
```

```python
import mine
assert mine.VALUE == VALUE
```

```bash
for name in vcd pai; do
  regaze methods $name
done
make demo && pip install 'regaze[eval]'
python benchmarks/pages.py --check
```
"""


@pytest.fixture
def of(tmp_path):
    """What is wrong with a page of this text."""

    def check(text):
        page, folder = tmp_path / "some-page.md", tmp_path / "page"
        page.write_text(text, encoding="utf-8")
        folder.mkdir()
        return problems(page, folder)

    return check


def test_a_right_page_has_no_problems(of):
    assert of(GOOD) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\n\n\nraise KeyError\n```\n", 'some-page.md", line 4, in <module>'),
        ("```python\nif\n```\n", "SyntaxError"),
        ("<!-- skip: too dear -->\n```python\nif\n```\n", "SyntaxError"),
        ("<!-- skip: too dear -->\n```python\nimport regaze.evil\n```\n", "ModuleNotFoundError: No module"),
        (
            "<!-- skip: too dear -->\n```python\ndef f():\n    from regaze import Wrap\n```\n",
            "cannot import name",
        ),
        ("```python\nprint(4)\n```\n\n```text\n5\n```\n", "was not printed:\n5\nbut:\n4"),
        ("```python\nprint('a\\nb')\n```\n\n```text\nb\na\n```\n", "was not printed:\na\n"),
        ("```python\nprint('| a | 1 | 2 |')\n```\n<!-- output -->\n| a | 2 | 1 |\n", "| a | 2 | 1 |"),
        ("```pycon\n>>> 2 + 2\n5\n```\n", "Got:\n    4"),
        ("```bash\nregaze methods --jason\n```\n", "No such option: --jason"),
        ("<!-- skip: too dear -->\n```bash\nregaze methods --jason\n```\n", "line 3: regaze methods --jason"),
        ("```bash\n# first\nregaze \\\n  evalute pope\n```\n", "line 4: regaze evalute pope"),
        ("```bash\nregaze heatmap none.jpg 'What?'\n```\n", "exit code 2"),
        ("```bash\nmake coffee\n```\n", "Makefile has no target coffee"),
        ("```bash\npip install 'regaze[evil]'\n```\n", "regaze has no extra evil"),
        ("```bash\npython benchmarks/pages.py --chek\n```\n", "unrecognized arguments: --chek"),
        ("```bash\npython benchmarks/none.py\n```\n", "there is no benchmarks/none.py"),
        ("```bash\npython -m regaze.none\n```\n", "there is no regaze.none"),
        ("```bash\naccelerate launch --num_processes 2 -m regaze evaluate\n```\n", "Missing argument"),
        ("```bash\nfrobnicate\n```\n", "programs.py has no check of it"),
        ("```bash\nif true\n```\n", "syntax error"),
        ("```json\n{]\n```\n", "JSONDecodeError"),
        ("```\nregaze\n```\n", "no check of the language ''"),
    ],
)
def test_a_wrong_page_is_seen(of, text, message):
    assert message in "\n".join(of(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- skip: a reason -->\nText.\n\n```python\n```\n", "no block directly after"),
        ("<!-- skip: a reason -->\n", "no block directly after"),
        ("<!-- skip -->\n```python\n```\n", "not the form of a marker"),
        ("<!-- output -->\nText.\n", "no table after"),
    ],
)
def test_a_marker_that_marks_nothing_is_refused(of, text, message):
    with pytest.raises(ValueError, match=message):
        of(text)


def test_a_command_that_hangs_is_ended():
    with pytest.raises(TimeoutError, match="not done after 1 seconds"), regaze_command.time_limit(1):
        time.sleep(60)
