"""The shape of the package: each unit in each layer, a sentence for each package, short files, light imports."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from systolith.spec import UNITS, load

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "systolith"
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))

VIEWS = {
    "isa": "systolith/isa/{}.py",
    "sim": "systolith/sim/{}.py",
    "timing": "systolith/timing/{}.py",
    "rtl": "systolith/rtl/{}.py",
    "manual": "docs/units/{}.md",
    "tests": "tests/units/test_{}.py",
}


@pytest.mark.parametrize("view", VIEWS)
def test_each_unit_has_a_file_of_its_name(view: str) -> None:
    folder = (ROOT / VIEWS[view]).parent
    if not folder.is_dir():
        pytest.skip(f"there is no {folder.relative_to(ROOT)} yet")
    missing = [VIEWS[view].format(unit) for unit in UNITS if not (ROOT / VIEWS[view].format(unit)).is_file()]
    assert not missing, "units without a file of their name"


def test_each_package_has_one_sentence() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^- `systolith\.(\w+)` .+\.$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    assert not set(PACKAGES) - set(named), "packages without a sentence in docs/architecture.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 500, "split the file: a reader holds 500 lines"
    assert ast.get_docstring(ast.parse(source)), "a module begins with a sentence about itself"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_runs_imports_what_only_tests_need(package: str) -> None:
    """Import every module of a package in a fresh interpreter and look at what came with it."""
    if package == "rtl":
        pytest.skip("rtl is the one package that imports Amaranth; nothing that runs imports rtl")
    heavy = ["torch", "transformers", "amaranth", "ml_dtypes"]
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('systolith.{package}')\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_spec_needs_the_standard_library_alone() -> None:
    code = "import systolith.spec, sys; print(sorted({'numpy', 'numba', 'typer', 'rich'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_the_chip_file_of_the_readme_loads(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        path = tmp_path / f"mine{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert load(path).warnings == ()
    assert blocks


def test_this_file_tests_the_checkout() -> None:
    spec = importlib.util.find_spec("systolith")
    assert spec is not None
    assert spec.origin == str(PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_names_a_machine(path: Path) -> None:
    """Find absolute paths of somebody's machine and package-registry hosts in the source."""
    found = re.findall(r"/(?:home|root|work|Users)/\w+|pypi\.org|pythonhosted", path.read_text(encoding="utf-8"))
    assert not found
