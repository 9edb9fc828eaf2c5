"""The house rules of docs/ARCHITECTURE.md: who may import whom."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spyre_bench

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spyre_bench"

# room -> what its modules may import of this package
CORE = {
    "errors": set(),
    "files": set(),
    "shapes": set(),
    "trace_files": set(),
    "trace_formats": set(),
    "trace_times": {"trace_files", "trace_formats"},
    "traces": {"trace_files", "trace_formats", "trace_times"},
    "arrivals": set(),
    "lengths": {"traces", "trace_files"},
    "workload": {"shapes", "traces", "trace_files", "trace_formats", "arrivals", "lengths"},
    "cost": {"shapes", "trace_files"},
    "model_shapes": {"shapes"},
    "card": {"shapes", "cost", "model_shapes"},
    "cost_source": {"shapes", "cost", "model_shapes", "card"},
    "card_anchors": {"shapes", "model_shapes", "card"},
    "startup": {"shapes"},
    "batching": {"shapes", "workload", "cost"},
    "simulate": {"shapes", "workload", "cost", "batching"},
    "server_log": {"files", "shapes", "batching"},
    "metrics": {"shapes", "workload", "cost", "batching", "simulate", "bounds"},
    "bench_json": {"shapes", "workload", "cost", "batching", "simulate", "bounds", "metrics"},
    "schemes": {"shapes"},
    "bounds": {"shapes", "cost", "workload"},
    "lint": {"shapes", "cost", "workload"},
    "validate": {"files"},
    "records": {"files"},
    "regression": {"records"},
    "baseline": {"records"},
    "optimize": {"shapes", "workload", "cost", "bounds", "schemes"},
    "advise": {
        "shapes",
        "workload",
        "cost",
        "batching",
        "simulate",
        "metrics",
        "bounds",
        "schemes",
        "optimize",
    },
    "curve": {"shapes", "workload", "cost", "bounds", "schemes", "optimize"},
    "waterfall": {"workload", "cost", "batching", "simulate", "metrics", "bounds", "loads"},
    "loads": {
        "shapes",
        "workload",
        "cost",
        "batching",
        "simulate",
        "metrics",
        "bounds",
        "schemes",
        "optimize",
        "advise",
    },
    "deployments": {
        "shapes",
        "workload",
        "cost",
        "batching",
        "simulate",
        "metrics",
        "bounds",
        "optimize",
        "advise",
        "loads",
        "model_shapes",
        "card",
    },
}
# The commands that only calculate: on top of any of the core, and of nothing else.
EDGE = {
    "sweep": CORE.keys(),
    "planning": CORE.keys() | {"sweep"},
    "serving": CORE.keys(),
    "trust": CORE.keys() | {"serving"},
    "ranks_here": CORE.keys() | {"serving", "trust", "engine"},
    "review": {"records", "regression"},
    "pages": {"review"},
}
HEAVY = {"torch", "vllm", "fms", "transformers", "matplotlib", "IPython", "ipywidgets", "papermill"}


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, not relative"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    """`spyre_bench.shapes.Bucket` -> `shapes`."""
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "spyre_bench" and len(part) > 1}


def libraries(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules(folder: str = "") -> list[Path]:
    return sorted((PACKAGE / folder).glob("*.py"))


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_only_its_own_lower_rooms_and_nothing_heavy(module):
    path = PACKAGE / f"{module}.py"
    if not path.exists():  # a room of the plan that is not built yet
        return
    names = imports(path)
    assert rooms(names) - {"__version__"} <= CORE[module]
    assert not libraries(names) & HEAVY


@pytest.mark.parametrize("module", EDGE)
def test_the_calculating_commands_stand_on_the_core_alone(module):
    names = imports(PACKAGE / f"{module}.py")
    assert rooms(names) <= EDGE[module]
    assert not libraries(names) & HEAVY


@pytest.mark.parametrize("path", modules("engine"), ids=lambda path: path.stem)
def test_the_engine_knows_no_vllm(path):
    names = imports(path)
    assert "vllm" not in libraries(names)
    assert rooms(names) <= {"engine", "shapes", "cost", "card", "files"}


@pytest.mark.parametrize("path", modules("plugin"), ids=lambda path: path.stem)
def test_the_plugin_stands_on_engine_and_core_only(path):
    assert rooms(imports(path)) <= {"plugin", "engine", "batching", "cost", "shapes"}


def test_plots_take_frames_and_know_nothing_else_of_us():
    for path in modules("plots"):
        assert rooms(imports(path)) <= {"plots"}


def test_only_the_config_reads_the_environment():
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    }
    settings = {"plugin/config.py", "plugin/__init__.py", "engine/checkpoint.py"}
    assert readers <= settings | {"plugin/card_runtime.py"}  # which writes what the runtime reads


def test_the_package_and_the_command_line_import_without_torch():
    code = f"import sys, spyre_bench.cli; print(sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_core_alone_means_torch_is_not_even_installed():
    if not os.environ.get("SPYRE_BENCH_CORE_ONLY"):
        pytest.skip("asked by `make test-core`, in an empty environment")
    for library in sorted(HEAVY):
        with pytest.raises(ImportError):
            __import__(library)


def test_the_version_is_stated_once():
    assert f'version = "{spyre_bench.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_types_are_checked_strictly_in_the_whole_core():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert checked["strict"]
    assert {Path(file).stem for file in checked["files"]} == CORE.keys()


def test_commit_hooks_and_make_lint_strip_the_same_from_notebooks():
    keys = {
        re.search(r'--extra-keys "(.+?)"', (ROOT / name).read_text()).group(1)
        for name in ("Makefile", ".pre-commit-config.yaml")
    }
    assert len(keys) == 1
