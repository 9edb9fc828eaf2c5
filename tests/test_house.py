"""The house rules of docs/ARCHITECTURE.md: who may import whom, and who reads the environment."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import typer

import spyre_bench
from spyre_bench.cli import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spyre_bench"


def on(*rooms: str) -> set[str]:
    """These rooms and all that they stand on."""
    found = set(rooms)
    for room in rooms:
        found |= on(*ROOMS[room])
    return found


# room, a folder or a file of the root -> what its modules may import of this package
ROOMS: dict[str, set[str]] = {
    "shapes": set(),
    "files": set(),
    "errors": set(),
    "frames": set(),
    "plots": set(),
    "checkpoints": set(),
}
ROOMS["shape_set"] = {"shapes"}
ROOMS["model_sizes"] = {"shapes"}
ROOMS["pass_log"] = {"shapes", "shape_set", "files"}
ROOMS["workload"] = {"shapes", "files", "frames"}
ROOMS["cost"] = {"shapes", "shape_set", "model_sizes", "files", "frames"}
ROOMS["policy"] = {"shapes", "shape_set", "cost"}
ROOMS["simulate"] = {"workload", "cost", "policy", "shapes", "shape_set"}
ROOMS["metrics"] = {"simulate", "workload", "cost", "policy", "pass_log", "shapes", "shape_set"}
ROOMS["choose"] = on("metrics")
ROOMS["studies"] = on("choose", "model_sizes", "errors")
ROOMS["engine"] = {"checkpoints", "shapes", "shape_set", "model_sizes", "pass_log", "cost", "files"}
ROOMS["plugin"] = {
    *("engine", "checkpoints", "policy", "cost", "pass_log", "shapes", "shape_set"),
    *("model_sizes", "files", "errors"),
}
ROOMS["measure"] = {"engine", "plugin", "checkpoints", "cost", "shapes", "shape_set", "files"}
ROOMS["validate"] = on("metrics", "measure", "pass_log", "model_sizes") - {
    *("engine", "checkpoints", "plugin", "errors")
}
ROOMS["runs"] = {"plots", "files", "errors"}
ROOMS["review"] = {"runs", "files"}
ROOMS["explore"] = set(ROOMS)
ROOMS["cli"] = set(ROOMS) - {"explore"}  # nothing imports these two

# libraries that cost seconds or may be missing -> the rooms that may import them
HEAVY = {
    "torch": {"engine", "measure", "plugin", "checkpoints"},
    "fms": {"engine", "measure"},
    "transformers": {"engine", "measure", "plugin", "checkpoints"},
    "vllm": {"plugin"},
    "matplotlib": {"plots", "explore", "runs", "cli"},
    "IPython": {"runs", "explore"},
    "ipywidgets": {"explore"},
    "papermill": {"runs"},
    "voila": {"runs"},
}
# the rooms that neither torch nor a notebook's libraries are needed for
CORE = {
    "shapes",
    "shape_set",
    "files",
    "errors",
    "frames",
    "model_sizes",
    "pass_log",
    "workload",
    "cost",
    "policy",
    "simulate",
    "metrics",
    "choose",
    "studies",
}
# what is typed strictly beside them, and what of them is not yet
ALSO_TYPED = {"runs.records", "review.baseline", "review.pairs", "review.regression"}
ALSO_TYPED |= {"validate.card_anchors", "validate.compare"}
NOT_YET_TYPED = {"studies.sweep"}  # joblib's, Dask's and Ray's types
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`spyre_bench/engine/__init__.py` -> `engine`; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_in(path: Path) -> str:
    """As `name_of`, "" outside of the package."""
    return name_of(path) if path.is_relative_to(PACKAGE) else ""


MODULES = {name_of(path): path for path in FILES}


BY_TEXT = ("import_module", "__import__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every module and name that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full, not relative"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(BY_TEXT):
            yield from (word.value for word in node.args[:1] if isinstance(word, ast.Constant))


def imported(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text())))


def ours(names: set[str]) -> set[str]:
    """The modules among them: `spyre_bench.cost.table.CostRow` -> `cost.table`."""
    found = set()
    for name in names:
        package, _, inner = name.partition(".")
        if package == "spyre_bench":
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found - {""}  # the package itself holds a version and gives names on demand


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_folder_and_file_of_the_root_is_a_room_and_every_room_is_there():
    assert {room(name) for name in MODULES} - {""} == ROOMS.keys()


def test_every_folder_of_code_is_a_package():
    assert all((path.parent / "__init__.py").exists() for path in FILES)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(name):
    for module, path in MODULES.items():
        if room(module) == name:
            assert {room(other) for other in ours(imported(path))} <= ROOMS[name] | {name}, module


def test_the_rooms_stand_on_each_other_in_no_circle():
    list(TopologicalSorter(ROOMS).static_order())


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_in_a_circle_not_even_inside_of_a_function():
    assert not circle({module: ours(imported(path)) - {module} for module, path in MODULES.items()})


def test_every_module_is_imported_somewhere_or_named_in_full():
    """What a rename or a merge left behind is neither. Named are processes, entry points, classes
    that vLLM is told of."""
    users = {*ROOT.glob("tests/**/*.py"), *FILES}
    reached = set().union(*(ours(imported(path)) - {name_in(path)} for path in users))
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] == "code":
                reached |= ours(
                    set(imports(ast.parse(re.sub("(?m)^%.*", "", "".join(cell["source"])))))
                )
    text = "".join(path.read_text() for path in (*FILES, ROOT / "pyproject.toml"))
    left = {module for module in MODULES.keys() - reached if f"spyre_bench.{module}" not in text}
    assert not {module for module in left if MODULES[module].name != "__init__.py"}


@pytest.mark.parametrize(
    "line",
    [
        "from spyre_bench.cost import table",
        "import spyre_bench.cost.table as t",
        "importlib.import_module('spyre_bench.cost.table')",
        "__import__('spyre_bench.cost.table')",
    ],
)
def test_a_circle_that_a_function_hides_is_noticed(line):
    inner = ours(set(imports(ast.parse(f"def f():\n    {line}"))))
    assert circle({"shapes": inner, "cost.table": {"shapes"}})


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_is_imported_only_where_it_may_be(library):
    users = {
        room(module)
        for module, path in MODULES.items()
        if library in {name.split(".")[0] for name in imported(path)}
    }
    assert users <= HEAVY[library]


def reads_environment(tree: ast.AST) -> bool:
    """`os.environ`, `os.getenv`, or either by itself; what a child process gets as `env=` is
    handed on, not read."""
    handed_on = {
        id(inner)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if word.arg == "env"
        for inner in ast.walk(word.value)
    }
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and id(node) not in handed_on)
        or (isinstance(node, ast.ImportFrom) and {a.name for a in node.names} & ENVIRONMENT)
        for node in ast.walk(tree)
    )


ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


def test_only_the_settings_read_the_environment():
    readers = {
        module for module, path in MODULES.items() if reads_environment(ast.parse(path.read_text()))
    }
    settings = {"plugin", "plugin.config", "checkpoints.find"}
    settings |= {"explore.settings"}  # those in the address of a page, which Voilà puts there
    # which write what the runtime and vLLM read
    assert readers <= settings | {"plugin.card_runtime", "plugin.start_method"}


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("import os\nos.environ['A']", True),
        ("import os as system\nsystem.getenv('A')", True),
        ("from os import environ", True),
        ("import os, subprocess\nsubprocess.run([], env=os.environ | {'A': '1'})", False),
        ("import os, subprocess\nsubprocess.run([os.environ['A']], env={})", True),
        ('"""os.environ in a sentence"""', False),
    ],
)
def test_reading_the_environment_is_told_from_handing_it_on(code, reads):
    assert reads_environment(ast.parse(code)) == reads


COST_SOURCES = {"CostModel", "MeasuredCost", "SpyreCost", "FittedCost"}
COST_SOURCES |= {"_OfAnother", "Rescaled", "RescaledShapes"}


def asks_for_a_cost_source(tree: ast.AST) -> bool:
    """`isinstance` or `issubclass` of one, by whatever path it is named."""
    return any(
        isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        and COST_SOURCES
        & {getattr(inner, "id", getattr(inner, "attr", "")) for inner in ast.walk(node)}
        for node in ast.walk(tree)
    )


def test_nobody_outside_of_cost_asks_which_source_a_cost_comes_from():
    asking = {
        module
        for module, path in MODULES.items()
        if asks_for_a_cost_source(ast.parse(path.read_text()))
    }
    assert {room(module) for module in asking} <= {"cost"}, asking
    assert asks_for_a_cost_source(ast.parse("isinstance(a, int | source.SpyreCost)"))


def test_every_source_of_costs_is_known_by_the_rule():
    bases = {
        node.name: {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    sources = {"CostModel"}
    while more := {name for name, of in bases.items() if of & sources} - sources:
        sources |= more
    assert sources == COST_SOURCES


def commands(app: typer.Typer) -> Iterator[Callable]:
    yield from (command.callback for command in app.registered_commands)
    for group in app.registered_groups:
        yield from commands(group.typer_instance)


def test_no_command_has_more_than_eight_parameters_beyond_its_shared_groups():
    own = {
        command.__name__: len(inspect.signature(inspect.unwrap(command)).parameters)
        for command in commands(main.app)
    }
    assert {"simulate", "buckets", "measure", "update"} <= own.keys()
    assert {name: count for name, count in own.items() if count > 8} == {}


def test_the_face_has_ten_names_that_completion_shows_and_that_hide_no_room():
    assert len(spyre_bench.FACE) == 10
    assert set(spyre_bench.__all__) == spyre_bench.FACE.keys() <= set(dir(spyre_bench))
    assert not spyre_bench.FACE.keys() & (ROOMS.keys() | {"FACE"})
    for name, module in spyre_bench.FACE.items():
        value = getattr(spyre_bench, name)
        assert (value.__module__, value.__name__) == (f"spyre_bench.{module}", name)


def test_a_name_that_the_face_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Buckets'"):
        _ = spyre_bench.Buckets


def test_the_package_itself_names_modules_and_does_not_go_through_its_face():
    """Otherwise the table of rooms would not see what is imported."""
    for module, path in MODULES.items():
        names = {
            name.partition(".")[2] for name in imported(path) if name.startswith("spyre_bench.")
        }
        assert not names & spyre_bench.FACE.keys(), module


@pytest.mark.both
def test_the_face_imports_without_torch():
    code = (
        "import sys; from spyre_bench import *\n"
        "Scenario('azure_conv', '1,64,2', requests=9).run()\n"
        f"print(sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.both
def test_the_package_and_the_command_line_import_without_torch():
    code = (
        "import sys, spyre_bench.cli.main; "
        f"print(sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    )
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
    assert all((ROOT / file).exists() for file in checked["files"])
    typed = {
        name_of(path)
        for file in checked["files"]
        for path in ([ROOT / file] if file.endswith(".py") else (ROOT / file).rglob("*.py"))
    }
    core = {
        module
        for module, path in MODULES.items()
        if room(module) in CORE and path.name != "__init__.py"
    }
    assert typed >= core - NOT_YET_TYPED | ALSO_TYPED


def test_commit_hooks_and_make_lint_strip_the_same_from_notebooks():
    keys = {
        re.search(r'--extra-keys "(.+?)"', (ROOT / name).read_text()).group(1)
        for name in ("Makefile", ".pre-commit-config.yaml")
    }
    assert len(keys) == 1
