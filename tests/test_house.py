"""The rules of the house: short files and functions, tests beside the rooms, a true map, quick imports."""

from __future__ import annotations

import ast
import inspect
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import regaze
from regaze.eval.benchmarks import NAMES, load_class
from regaze.interventions import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "regaze"
LAZY = ("regaze", "regaze.toolkit", "regaze.interventions", "regaze.eval")
HEAVY = {"torch", "transformers", "numpy", "scipy", "matplotlib", "pydantic"}


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in suffixes)


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, without its decorators."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_no_file_is_longer_than_500_lines():
    long = {str(path.relative_to(ROOT)): lines(path) for path in sources(".py", ".js", ".css", ".html")}
    assert {name: count for name, count in long.items() if count > 500} == {}


def test_no_function_is_longer_than_70_lines():
    long = dict(entry for path in sources(".py") for entry in functions(path))
    assert {name: count for name, count in long.items() if count > 70} == {}


def test_the_toolkit_has_at_most_four_modules_outside_its_rooms():
    modules = [path.name for path in (PACKAGE / "toolkit").glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 4, modules


def rooms() -> list[Path]:
    """Folders with modules, relative to the package."""
    folders = {path.parent for path in sources(".py") if path.name != "__init__.py"}
    return sorted(folder.relative_to(PACKAGE) for folder in folders - {PACKAGE})


def test_every_room_has_its_tests():
    """A room has a folder of tests or, if it is one method or benchmark, a file of that name."""

    def tested(room: Path) -> bool:
        return (ROOT / "tests" / room).is_dir() or (
            ROOT / "tests" / room.parent / f"test_{room.name}.py"
        ).is_file()

    assert [str(room) for room in rooms() if not tested(room)] == []


def test_every_folder_of_tests_is_a_room():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    beside = {Path("."), Path("docs")}
    assert [str(folder) for folder in sorted(folders - beside) if not (PACKAGE / folder).is_dir()] == []


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file imports from a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def test_methods_share_a_room_and_not_each_others_folders():
    """A method may use another one whole, by its class; helpers of two are in interventions/common."""
    classes = {tuple(name.split(":")) for name in registry.BUILT_IN.values()}
    folder, methods = PACKAGE / "interventions", {module.split(".")[2] for module, _ in classes}
    found = set()
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        for module, name in imports(path):
            other = module.split(".")[2] if module.startswith("regaze.interventions.") else ""
            if other in methods - {own} and (module, name) not in classes:
                found.add(f"{own} imports {name} from {module}")
    assert found == set()


def test_files_are_written_by_one_module():
    """So that each of them is whole and on disk; but what the kernel reads, and a log of training."""
    writes = re.compile(
        r"\.write_(?:text|bytes)\(|open\([^)]*[\"'][wax]b?\+?[\"']|os\.(?:replace|rename)\(|\.savefig\((?!partial)"
    )
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sources(".py")
        if path.name not in ("writing.py", "metering.py") and path.parent.name != "training"
        for line in path.read_text(encoding="utf-8").splitlines()
        if writes.search(line)
    }
    assert found == set()


def mapped() -> dict[Path, int]:
    """The paths that the map in CONTRIBUTING names, with their line numbers."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"^## The layout\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert block is not None, "CONTRIBUTING.md has no map under '## The layout'"
    paths: dict[Path, int] = {}
    parents: list[tuple[int, Path]] = []
    for number, line in enumerate(block[1].rstrip().splitlines()):
        indent = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= indent:
            parents.pop()
        folder = parents[-1][1] if parents else Path()
        names = re.split(r"\s{2,}", line.strip())[0].split()
        for name in names:
            paths[folder / name.rstrip(",")] = number
        if len(names) == 1 and names[0].endswith("/"):
            parents.append((indent, folder / names[0]))
    return paths


def test_the_map_in_contributing_is_true_and_fits_one_screen():
    paths = mapped()
    assert [str(path) for path in paths if not (ROOT / path).exists()] == []
    assert max(paths.values()) < 50
    named = {
        path.relative_to("regaze") for path in paths if path.parts[0] == "regaze" and len(path.parts) > 1
    }
    outer = {room for room in rooms() if len(room.parts) == 1}
    outer |= {room for room in rooms() if room.parts[0] == "toolkit" and len(room.parts) == 2}
    assert sorted(map(str, outer - named)) == []


def cpu_seconds(*command: str) -> float:
    """User and system CPU seconds of a Python command, the best of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *command],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    ("command", "bound"),
    [
        (("-c", "import regaze"), 1.0),
        (("-m", "regaze", "--help"), 1.8),
        (("-m", "regaze", "evaluate", "--help"), 1.8),
    ],
    ids=["import", "help", "help of a command"],
)
def test_start_is_quick(command, bound):
    """About 0.02, 0.15 and 0.3 s on an idle machine; the bounds allow for a slow one."""
    assert cpu_seconds(*command) < bound


@pytest.mark.parametrize("code", ["import regaze", "from regaze.cli import app", "import regaze.demo"])
def test_heavy_packages_load_on_first_use(code):
    code = f"import sys; {code}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_help_of_no_command_loads_what_is_heavy():
    code = "import sys; from regaze.cli.app import COMMANDS, load_command\n"
    code += "for name in COMMANDS: load_command(name)\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (HEAVY - {"pydantic"}) & set(done.stdout.split()) == set()


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_can_be_imported(package):
    module = __import__(package, fromlist=["*"])
    for name in module.__all__:
        assert getattr(module, name) is not None


def public_functions() -> Iterator[tuple[str, inspect.Signature]]:
    """Functions, constructors and public methods of the packages, by name."""
    packages = [__import__(package, fromlist=["*"]) for package in LAZY]
    values = {name: getattr(package, name) for package in packages for name in package.__all__}
    for name, value in (values | {name: load_class(name) for name in NAMES}).items():
        if inspect.isfunction(value):
            yield name, inspect.signature(value)
        elif inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isroutine):
                if not method.startswith("_") and inspect.isfunction(getattr(function, "__func__", function)):
                    yield f"{name}.{method}", inspect.signature(function)


def test_paths_are_taken_as_texts_and_as_path_likes():
    narrow = {
        f"{name}({parameter.name})"
        for name, signature in public_functions()
        for parameter in signature.parameters.values()
        if re.search(r"\bPath\b", str(parameter.annotation)) and "PathLike" not in str(parameter.annotation)
    }
    assert narrow == set()


def test_every_method_is_a_name_of_the_top_level():
    for path in [*registry.BUILT_IN.values(), *registry.VISION_TRANSFORMS.values()]:
        name = path.partition(":")[2]
        assert name in regaze.__all__
        assert getattr(regaze, name).__name__ == name
