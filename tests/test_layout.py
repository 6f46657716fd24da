"""Who may import whom, and what importing costs."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package may import from itself and from these, besides libraries.
ALLOWED = {
    "sb3_plasticity/common": set(),
    "sb3_plasticity/agents": {"common"},
    "sb3_plasticity/mitigations": {"agents", "common"},
    "sb3_plasticity/curvature": {"common"},
    "sb3_plasticity/callbacks": {"agents", "common", "curvature", "envs", "mitigations"},
    "sb3_plasticity/ppo_l2er": {"agents", "callbacks", "common", "mitigations", "vec_env", "zoo_configs"},
    "sb3_plasticity/vec_env.py": {"common", "envs"},
    "sb3_plasticity/zoo": {"callbacks", "common", "envs", "mitigations", "ppo_l2er", "vec_env", "zoo_configs"},
    "sb3_plasticity/study": {"callbacks", "common", "curvature", "envs", "ppo_l2er", "vec_env", "zoo"},
    "sb3_plasticity/doctor.py": {"common", "zoo"},
    "sb3_plasticity/inspect_agent.py": {"agents", "callbacks", "common", "curvature", "zoo"},
    "sb3_plasticity/cli.py": {"zoo"},
    "sb3_plasticity/__main__.py": {"cli"},
    "envs": {"common"},  # checks alone, which are plain Python
}
PLAIN_TORCH = [
    "common/rank.py",
    "common/training_rank.py",
    "common/plasticity.py",
    *(f"curvature/{name}.py" for name in ("spectrum", "hessian", "ggn", "kfac")),
]


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def files(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_down(place: str) -> None:
    own = place.removeprefix("sb3_plasticity/").removesuffix(".py")
    for path in files(place):
        for name in imported_modules(path):
            if name.startswith("sb3_plasticity."):
                package = name.split(".")[1]
                assert package in ALLOWED[place] | {own}, f"{path.name} imports {name}"


def test_every_room_is_held() -> None:
    """A new module has its arrows, too."""
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "sb3_plasticity").rglob("__init__.py")}
    rooms |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "sb3_plasticity").glob("*.py")}
    assert rooms - {"sb3_plasticity", "sb3_plasticity/__init__.py"} <= set(ALLOWED)


def test_a_class_name_exists_once() -> None:
    homes: dict[str, set[Path]] = {}
    for path in (*files("sb3_plasticity"), *files("envs")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(path)
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def replaced_parts(path: Path) -> Iterator[str]:
    """Yield what a file assigns to, or deletes, of anything that it has imported."""
    tree = ast.parse(path.read_text())
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    for node in ast.walk(tree):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            targets = [ast.Attribute(node.args[0], "...")]
        for target in targets:
            root = target
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if root is not target and isinstance(root, ast.Name) and root.id in imported:
                yield ast.unparse(target)


def test_the_check_for_replaced_parts_sees_them(tmp_path: Path) -> None:
    lines = ["import sys, argparse", "from matplotlib import pyplot as plt", "sys.argv = []", "sys.argv[1:] = []"]
    lines += ["plt.show = print", "setattr(argparse, 'ArgumentParser', 1)", "x = {}", "x.a = 1", "x['b'] = 2"]
    lines += ["del plt.figure"]
    (tmp_path / "patching.py").write_text("\n".join(lines))
    found = set(replaced_parts(tmp_path / "patching.py"))
    assert found == {"sys.argv", "sys.argv[1:]", "plt.show", "argparse....", "plt.figure"}


def test_nobody_replaces_parts_of_other_modules() -> None:
    # rl_zoo3's dictionary of algorithms is how one is added to it; Python's documentation says to replace showwarning
    allowed = {"ALGOS['ppo_l2er']", "os.environ[name]", "warnings.showwarning"}
    for place in ("sb3_plasticity", "envs", "examples", "benchmarks"):
        for path in files(place):
            assert set(replaced_parts(path)) <= allowed, path


@pytest.mark.parametrize("name", PLAIN_TORCH)
def test_numerics_take_plain_torch(name: str) -> None:
    for module in imported_modules(ROOT / "sb3_plasticity" / name):
        assert not module.startswith(("stable_baselines3", "sb3_contrib", "gymnasium")), module


def test_envs_know_gymnasium_numpy_and_mujoco_only() -> None:
    for path in files("envs"):
        for module in imported_modules(path):
            if module.startswith("sb3_plasticity.envs") or module == "sb3_plasticity.common.checks":
                continue
            assert not module.startswith(("torch", "stable_baselines3", "sb3_contrib", "sb3_plasticity.")), module


def test_nobody_imports_the_folder_envs() -> None:
    """``envs`` is ``sb3_plasticity.envs``: under two names there would be two of every class."""
    for place in ("sb3_plasticity", "envs", "tests", "benchmarks", "examples"):
        for path in files(place):
            for module in imported_modules(path):
                assert module.split(".")[0] != "envs", path


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, sb3_plasticity.envs; sys.exit(bool({'torch', 'stable_baselines3'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import sb3_plasticity

    for name in sb3_plasticity.__all__:
        assert getattr(sb3_plasticity, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'PPO_L2RE'"):
        sb3_plasticity.PPO_L2RE  # noqa: B018


def test_every_package_is_installed() -> None:
    """An editable installation finds packages that setup.cfg forgot; a wheel does not."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent for path in (ROOT / "sb3_plasticity").rglob("__init__.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = set(config["options"]["packages"].split())
    folders = {path.parent for path in ROOT.glob("envs/**/__init__.py")}
    packages |= {f"sb3_plasticity.{'.'.join(folder.relative_to(ROOT).parts)}" for folder in folders}
    assert listed == packages | {"sb3_plasticity.zoo_configs"}


def test_the_project_stands_alone() -> None:
    """Nothing refers to folders beside the repository."""
    forbidden = "../" + "shared"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yml", ".toml", ".cfg", ".txt"} and path.exists():
            assert forbidden not in path.read_text(), name
