"""Habits that a reader relies on, kept by a test: imports point downwards, files stay small and say
what they are, generated code is fresh, and what README and --help promise is there.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fs3", "metaserver", "storageserver", "client")
LINES_MAX = 500
TEST_LINES_MAX = 650  # a suite reads as a list
NAMES_THAT_SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "tools"}
# What only makes sense on the machine of whoever wrote it.
FOREIGN_PATH = re.compile(r"(?<![\w.$-])/(?:work|home|Users|root)/(?!\.\.\.)[\w.-]+")
MARKERS_OF_UNFINISHED_WORK = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks, or would; the working tree may hold others."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file()]


def sources() -> list[Path]:
    return [path for path in tracked("*.py") if "_pb2" not in path.name]


def in_folder(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that ``path`` imports, relative imports resolved."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts if relative.parts[0] == "fs3" else ("fs3", *relative.parts)
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            # "from fs3 import client" names a module in its second half.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def belongs_to(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def lazy_exports_of_the_public_face(path: Path, module: str) -> bool:
    """``fs3/__init__.py`` names the client for type checkers, and loads it on first use only."""
    return path == ROOT / "fs3" / "__init__.py" and belongs_to(module, "fs3.client")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_imports_none_of_the_other_folders(folder: str) -> None:
    foreign = [f"fs3.{other}" for other in FOLDERS if other not in ("fs3", folder)]
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources()
        if in_folder(path) == folder
        for module in imports(path)
        if any(belongs_to(module, package) for package in foreign)
        and not lazy_exports_of_the_public_face(path, module)
    ]
    assert found == []


@pytest.mark.parametrize("module", ["fs3", "fs3.client.cli.main"])
def test_what_people_wait_for_imports_nothing_heavy(module: str) -> None:
    heavy = ("grpc", "numpy", "structlog", "google.protobuf")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_core_imports_only_the_standard_library_numpy_and_itself() -> None:
    banned = {"time", "random", "os", "socket", "asyncio", "threading", "logging", "subprocess"}
    found = []
    for path in sources():
        if not path.is_relative_to(ROOT / "fs3" / "core"):
            continue
        for module in imports(path):
            top = module.partition(".")[0]
            allowed = (top in sys.stdlib_module_names and top not in banned) or top == "numpy"
            if not allowed and not belongs_to(module, "fs3.core"):
                found.append(f"{path.relative_to(ROOT)} imports {module}")
    assert found == []


def test_no_file_is_long() -> None:
    long = {}
    for path in sources():
        lines = len(path.read_text().splitlines())
        if lines > (TEST_LINES_MAX if in_folder(path) == "tests" else LINES_MAX):
            long[str(path.relative_to(ROOT))] = lines
    assert long == {}, "is there a seam?"


def test_every_decision_has_a_number_of_its_own() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    wrong = [page.name for page in pages if not page.read_text().startswith(f"# {page.name[:4]}")]
    assert wrong == []


def test_file_names_say_something() -> None:
    found = [str(p.relative_to(ROOT)) for p in sources() if p.stem in NAMES_THAT_SAY_NOTHING]
    assert found == []


def test_modules_of_tests_have_names_of_their_own() -> None:
    # pytest imports them by these alone.
    names = [p.name for p in tracked("tests/*.py") if p.name.startswith("test_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_module_says_what_it_is() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in sources()
        if (tree := ast.parse(path.read_text())).body and not ast.get_docstring(tree)
    ]
    assert found == []


def test_nothing_is_left_unfinished_or_bound_to_one_machine() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in (".pyi", ".png", ".svg") or "_pb2" in path.name:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if FOREIGN_PATH.search(line) or MARKERS_OF_UNFINISHED_WORK.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "proto" / "generate.py"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    made = sorted(tmp_path.iterdir())
    assert {path.name for path in made} == {p.name for p in (ROOT / "proto").glob("*_pb2.py*")}
    stale = [p.name for p in made if p.read_bytes() != (ROOT / "proto" / p.name).read_bytes()]
    assert stale == [], "run: python proto/generate.py"


def test_every_package_is_installed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in sources() if path.name == "__init__.py"}
    names = {
        ".".join(parts if parts[0] == "fs3" else ("fs3", *parts))
        for folder in folders
        if (parts := folder.parts) and parts[0] in (*FOLDERS, "proto")
    }
    assert names == set(listed)


# -- what is promised to users ---------------------------------------------------------------------


def commands() -> dict[str, object]:
    """Every command of ``fs3``, "node stop" among them, with what typer knows about it."""
    from fs3.client.cli.main import app

    def walk(group: object, prefix: str) -> Iterator[tuple[str, object]]:
        for name, command in getattr(group, "commands", {}).items():
            yield f"{prefix}{name}", command
            yield from walk(command, f"{prefix}{name} ")

    return dict(walk(typer.main.get_command(app), ""))


def test_every_command_has_help_and_an_example() -> None:
    for name, command in commands().items():
        text = getattr(command, "help", None) or ""
        assert len(text.strip()) > 10, f"fs3 {name} has no help"
        if not hasattr(command, "commands"):
            assert "Example" in text, f"fs3 {name} shows no example"


def test_lists_of_commands_are_not_cut_at_80_columns(monkeypatch, capsys) -> None:
    from fs3.client.cli.main import run

    monkeypatch.setenv("COLUMNS", "80")
    groups = [name for name, command in commands().items() if hasattr(command, "commands")]
    assert "kv" in groups
    for name in ["", *groups]:
        run([*name.split(), "--help"])
        shown = capsys.readouterr().out
        assert [
            line for line in shown.splitlines() if line.endswith("...") and "[OPT" not in line
        ] == []


def test_every_option_has_help() -> None:
    for name, command in commands().items():
        for parameter in getattr(command, "params", []):
            if parameter.name == "help":
                continue
            assert getattr(parameter, "help", None), f"fs3 {name}: {parameter.name} has no help"


DOCUMENTS = ("README.md", "CONTRIBUTING.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_documents_exist(name: str) -> None:
    known = commands()
    text = (ROOT / name).read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL))
    spoken = blocks + "\n" + "\n".join(re.findall(r"`([^`\n]+)`", text))
    for line in spoken.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0] == "fs3" and len(words) > 1 and words[1].islower():
            if words[1].startswith("-"):
                continue
            assert words[1] in known, f"{name}: {line!r}"
            if hasattr(known[words[1]], "commands") and len(words) > 2:
                assert f"{words[1]} {words[2]}" in known, f"{name}: {line!r}"
        if words[0] == "bash" and len(words) > 1:
            assert (ROOT / words[1]).is_file(), f"{name}: {line!r}"


PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("name", [*DOCUMENTS, *PAGES])
def test_links_in_documents_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link, heading in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / link if link else page
        assert there.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{link}#{heading}"


def test_promises_are_shown_by_tests_that_exist() -> None:
    """docs/consistency.md names files, and tests in them (``::name``: in the file named before)."""
    text = (ROOT / "docs/consistency.md").read_text()
    suites = {path.name: path.read_text() for path in tracked("tests/*.py")}
    missing, suite = [], ""
    for file, test in re.findall(r"`(?:[\w/]*?(\w+\.py))?(?:::(\w+))?`", text):
        suite = file or suite
        if (file and file not in suites) or (test and f"def {test}(" not in suites[suite]):
            missing.append(f"{suite}::{test}")
    assert missing == []


def test_entry_points_exist() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for script, where in scripts.items():
        module = where.partition(":")[0]
        assert importlib.util.find_spec(module) is not None, f"{script}: {module}"
