"""The commands as a user types them."""

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_L2ER
from stable_baselines3 import PPO

from sb3_plasticity import doctor
from sb3_plasticity.cli import main
from sb3_plasticity.envs.rendering import headless_backend

HAS_BATCH = find_spec("mujoco.batch") is not None  # MuJoCo 3 has none
AGENT = ["--algo", "ppo_l2er", "--env", "SlipperyAnt-v0"]


@pytest.fixture(autouse=True)
def _no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def test_the_readmes_commands(command: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Saved to" in command("train", "--algo", "ppo_l2er", *TINY_L2ER, "-n", "64", "--eval-freq", "64")
    output = command("enjoy", *AGENT, "--task", "2", "-n", "10")
    assert "No display: nothing is drawn" in output
    assert "Task 2: friction 1" in output
    cart = ["--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "--verbose", "0", "--device", "cpu"]
    parameters = ["-params", "n_envs:2", "n_steps:64", "batch_size:64", "n_epochs:1", "compile:False"]
    assert main(["train", "--algo", "ppo_l2er", *cart, *parameters]) == 0
    plot = ["plots", "plot_train", "-a", "ppo_l2er", "-e", "CartPole-v1", "-f", "logs"]
    assert main(plot) == 2
    assert "no run has 100 episodes" in capsys.readouterr().err
    command(*plot, "-w", "2")
    before = Path("plot_train.png").read_bytes()
    assert main([*plot, "-w", "3"]) == 0
    assert Path("plot_train.png").read_bytes() == before and Path("plot_train-2.png").is_file()
    command("plots", "all_plots", "-a", "ppo_l2er", "-e", "SlipperyAnt-v0", "-f", "logs", "--no-display", "-o", "all")
    assert Path("all.pkl").is_file()
    output = command(
        "benchmark", "--no-hub", "--test-mode", "-n", "1100", "--benchmark-dir", "bench", "--num-threads", "1"
    )
    assert "Mean reward" in output
    assert "SlipperyAnt-v0" in Path("bench/benchmark.md").read_text()


def test_filming_without_a_display(command: Callable[..., Any], trained: Path) -> None:
    try:
        headless_backend()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert main(["record_video", *AGENT, "--load-best", "--task", "0", "-n", "5"]) == 0
    output = command("record_video", *AGENT, "--load-best", "--task", "1", "-n", "5")
    assert "Filming" in output
    assert "Task 1: friction 0.5" in output
    names = {path.name for path in Path("logs").rglob("*.mp4")}
    (step,) = {int(name.split("-at-")[1].split("-")[0]) for name in names}
    assert names == {f"ppo_l2er-best_model-at-{step}-task-{task}.mp4" for task in (0, 1)}
    film = next(Path("logs").rglob("*-task-1.mp4"))
    before = film.read_bytes()
    assert main(["record_video", *AGENT, "--load-best", "--task", "1", "-n", "5"]) == 0
    assert film.read_bytes() == before and film.with_stem(f"{film.stem}-2").is_file()


def test_showing_the_best_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enjoy", *AGENT, "--load-best", "-n", "10", "--task", "0"]) == 0
    assert "Task 0: friction 0.2" in capsys.readouterr().out


def test_showing_a_checkpoint_takes_its_own_statistics(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ["enjoy", *AGENT, "--load-checkpoint", "256", "-n", "10"]
    assert main(checkpoint) == 0
    path = Path("logs/ppo_l2er/SlipperyAnt-v0_1/rl_model_vecnormalize_256_steps.pkl")
    path.rename("moved.pkl")
    try:
        assert main(checkpoint) == 2
    finally:
        Path("moved.pkl").rename(path)
    assert f"{path}: the normalisation statistics of" in capsys.readouterr().err


def test_stock_algorithms_train_on_our_environments(train: Callable[..., Any]) -> None:
    options = [
        "--env",
        "SlipperyHopper-v0",
        "-n",
        "300",
        "--eval-freq",
        "200",
        "--eval-episodes",
        "1",
        "--vec-env",
        "batch" if HAS_BATCH else "dummy",
    ]
    status, error = train("--algo", "sac", *options, "-params", "learning_starts:250", "buffer_size:1000")
    assert (status, error) == (0, "")
    run = Path("logs/sac/SlipperyHopper-v0_1")
    assert (run / "best_model.zip").is_file()
    assert "eval_fixed/friction_0.376" in (run / "progress.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tarin"], "(did you mean 'train'?)"),
        (["plots", "plot_tarin"], "(did you mean 'plot_train'?)"),
        (["enjoy", *AGENT, "--exp-id", "7"], "SlipperyAnt-v0_7: there is no such folder"),
        (["enjoy", *AGENT, "--detreministic"], "(did you mean '--deterministic'?)"),
        (["doctor", "pakages"], "(did you mean 'packages'?)"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error


@pytest.mark.parametrize(
    "command", ["train", "enjoy", "record_video", "benchmark", "plots", "plots plot_train", "doctor"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    assert f"usage: sb3-plasticity {command}" in capsys.readouterr().out


def test_a_task_of_a_world_without_tasks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu").save(tmp_path / "model.zip")
    assert main(["enjoy", str(tmp_path / "model.zip"), "--task", "1", "--no-render"]) == 2
    assert "--task 1: CartPole-v1 has no tasks" in capsys.readouterr().err
    assert main(["enjoy", str(tmp_path / "model.zip"), "-n", "60", "--no-render", "--stochastic"]) == 0
    assert "episodes: return" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_without_the_extra_the_command_says_so(tmp_path: Path) -> None:
    code = "import sys; sys.modules['rl_zoo3'] = None; from sb3_plasticity.cli import main; sys.exit(main(['train']))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 2
    assert "pip install 'sb3-plasticity[zoo]'" in process.stderr


def test_doctor_finds_packages_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "packages", "threads", "simulation"]) == 0
    report = capsys.readouterr().out
    for line in ("ok       torch ", "ok       rl_zoo3", "ok       processors"):
        assert line in report
    assert ("with batches of simulations" in report) == HAS_BATCH


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"torch": "1.0", "sb3-plasticity": "0.1.0"}
    real = metadata.version

    def version(name: str) -> str:
        if name == "rl_zoo3":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["doctor", "packages"]) == 1
    report = capsys.readouterr().out
    assert "missing  torch                1.0, tested is" in report
    assert "rl_zoo3              not installed  -> pip install 'sb3-plasticity[zoo]'" in report
    assert doctor.run_code("raise SystemExit('broken')") == (False, "broken")


@pytest.mark.slow
def test_doctor_tries_rendering_and_the_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "rendering", "compiler"])
    report = capsys.readouterr().out
    assert "MUJOCO_GL=egl" in report
    assert "torch.compile" in report
