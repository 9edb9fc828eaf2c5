"""Makefile, environment.yml and Dockerfile.spyre say what pyproject.toml says, and cannot drift."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from spyre_bench.shapes import BUCKET_LISTS, Bucket, BucketSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "Dockerfile.spyre").read_text()
PYTHONS = SpecifierSet(PROJECT["requires-python"])
# conda's name -> pip's, where they differ
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
# what conda gives besides packages of ours
CONDA_TOOLS = {"python", "pip", "make", "git", "gxx"}


def pins(text: str) -> set[tuple[str, str]]:
    """Every `name==version` in it."""
    found = re.findall(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.]+)", text)
    return {(canonicalize_name(name), version) for name, version in found}


def required(extra: str) -> dict[str, Requirement]:
    requirements = map(Requirement, PROJECT["optional-dependencies"][extra])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each with its words on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions after each FROM."""
    found = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        elif found:
            found[-1].append((word, rest))
    return found


def of_image(word: str) -> str:
    """What the last stage says under that instruction; the last one counts."""
    return [rest for name, rest in stages()[-1] if name == word][-1]


def image_environment() -> dict[str, str]:
    settings = " ".join(rest for word, rest in stages()[-1] if word == "ENV")
    return dict(setting.split("=", 1) for setting in settings.split())


CONSTRAINTS = dict(pins((ROOT / "constraints.txt").read_text()))
PINNED = dict(pins(str(PROJECT["optional-dependencies"])))
CONDA = {}
for line in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]:
    name, _, version = line.partition("=")
    CONDA[CONDA_NAMES.get(name, name)] = version


def test_torch_vllm_and_fms_are_pinned():
    assert PINNED.keys() == {"torch", "vllm", "ibm-fms"}


def test_constraints_hold_the_versions_that_the_project_pins():
    assert {name: CONSTRAINTS[name] for name in PINNED} == PINNED


def test_the_makefile_installs_each_pinned_package_at_that_version_and_at_no_other():
    installed = {(name, version) for name, version in pins(MAKEFILE) if name in PINNED}
    assert installed == PINNED.items()


def test_the_version_that_vllm_is_told_to_have_is_the_one_that_is_built():
    assert re.findall(r"VLLM_VERSION_OVERRIDE=(\S+)", MAKEFILE) == [PINNED["vllm"]]


def test_the_model_package_that_the_makefile_installs_is_the_one_that_an_error_names():
    named = pins((ROOT / "spyre_bench/checkpoints/embedded.py").read_text())
    assert len(named) == 1
    assert named <= pins(MAKEFILE)


def test_the_makefile_accepts_the_pythons_of_the_project():
    accepted = re.search(r"sys\.version_info\[:2\] not in \((\(.*?\))\)\)", MAKEFILE)[1]
    accepted = {f"{major}.{minor}" for major, minor in re.findall(r"\((\d+), (\d+)\)", accepted)}
    assert accepted == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in PYTHONS}


def test_python_is_the_same_by_default_in_makefile_and_conda():
    assert re.search(r"^PYTHON +\?= python(\S+)", MAKEFILE, re.MULTILINE)[1] == CONDA["python"]
    assert CONDA["python"] in PYTHONS


def test_conda_gives_the_notebook_tools_and_numpy_and_leaves_the_rest_to_the_makefile():
    assert CONDA.keys() == CONDA_TOOLS | {"numpy"} | required("notebooks").keys()


def test_conda_gives_the_versions_that_pip_would_keep():
    wanted = {name: version for name, version in CONDA.items() if name not in CONDA_TOOLS}
    assert wanted == {name: CONSTRAINTS[name] for name in wanted}


def test_each_line_of_the_conda_environment_says_what_needs_it():
    lines = (ROOT / "environment.yml").read_text().partition("dependencies:\n")[2].splitlines()
    assert len(lines) == len(CONDA)
    assert all(re.search(r"  # \w+", line) for line in lines)


def test_the_image_is_set_up_by_the_makefile_and_pins_no_package_of_its_own():
    assert not pins(DOCKERFILE)
    assert "pip install" not in DOCKERFILE
    made = " ".join(rest for word, rest in stages()[1] if word == "RUN")
    assert "make $VENV/.stamps/vllm" in made
    assert "make setup" in made
    assert "\n$(STAMPS)/vllm:" in MAKEFILE
    assert re.search(r"^STAMPS +:= \$\(VENV\)/\.stamps$", MAKEFILE, re.MULTILINE)


def test_base_and_torch_index_of_the_image_are_build_arguments_and_the_base_is_pinned():
    arguments = dict(rest.partition("=")[::2] for word, rest in instructions() if word == "ARG")
    assert arguments.keys() == {"BASE", "TORCH_INDEX"}
    assert re.fullmatch(r"debian:\w+-\d{8}-slim", arguments["BASE"])
    assert "\nTORCH_INDEX ?=" in MAKEFILE


def test_the_image_has_the_compiler_and_no_other_build_tool():
    base = re.search(r"apt-get install -y --no-install-recommends ([^&]+)", stages()[0][0][1])[1]
    assert base.split() == ["g++", "libpython3-dev", "openssl", "python3"]
    assert "apt-get" not in str(stages()[-1])
    removed = re.search(r"pip uninstall --quiet --yes ([^&]+)", str(stages()[1]))[1].split()
    tools = re.search(r"^BUILD_TOOLS := (.*)", MAKEFILE, re.MULTILINE)[1].replace('"', "").split()
    assert {"cmake", "setuptools-rust", "setuptools-scm"} == set(removed) <= set(tools)


def test_the_image_serves_the_embedded_model_as_a_user_who_is_not_root():
    assert of_image("ENTRYPOINT") == '["vllm", "serve"]'
    assert of_image("CMD") == '["/opt/cache/smollm2"]'
    user = of_image("USER").split(":")[0]
    assert user.isdigit()
    assert int(user) > 0


def test_the_image_asks_for_its_health_where_it_serves():
    assert f"127.0.0.1:{of_image('EXPOSE')}/health" in of_image("HEALTHCHECK")


def test_the_images_buckets_come_from_environment_variables():
    environment = image_environment()
    assert environment.keys() >= BUCKET_LISTS.keys()
    assert set(BucketSet.from_lists(environment)) == {Bucket(4, 64, 32), Bucket(2, 256, 64)}


@pytest.mark.parametrize(
    "name", ["Makefile", "constraints.txt", "environment.yml", "Dockerfile.spyre", "tools/image.sh"]
)
def test_no_file_names_a_registrys_host(name):
    addresses = re.findall(r"https?://[^\s'\"]+", (ROOT / name).read_text())
    assert not [address for address in addresses if not address.startswith("http://127.0.0.1:")]
