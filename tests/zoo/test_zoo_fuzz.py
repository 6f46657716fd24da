"""A seeded fuzz of hyper-parameters, -params and options: one line for every mistake, nothing trained by accident."""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import sb3_plasticity.zoo.train  # noqa: F401  (its imports are not to count as a case's time)
from sb3_plasticity.cli import main

CASES = 3000
BASE: dict[str, Any] = {
    "n_timesteps": 64,
    "policy": "MlpPolicy",
    "n_envs": 1,
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 1,
    "gamma": 0.99,
    "learning_rate": 3e-4,
    "clip_range": 0.2,
    "er_coef": 1e-3,
    "max_grad_norm": 0.5,
    "stats_window_size": 100,
    "policy_kwargs": {"net_arch": [4]},
}
NUMBERS: tuple[str, ...] = (
    "n_envs",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "learning_rate",
    "clip_range",
    "er_coef",
    "l2_coef",
)
NUMBERS += ("max_grad_norm", "stats_window_size", "target_kl", "gae_lambda", "vf_coef", "ent_coef", "n_timesteps")
NEVER: tuple[Any, ...] = (
    "ten",
    "{}",
    "lin_x",
    "lin_",
    {},
    [],
    {"a": 1},
    [1, 2],
    float("nan"),
    "nn.ReLU",
    "__import__('os')",
    "0.3.1",
)
OTHERS: tuple[str, ...] = (
    "normalize",
    "policy_kwargs",
    "env_kwargs",
    "callback",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
)
OTHERS += ("vec_env", "noise_type", "mitigations", "rollout_buffer_class", "policy", "vec_env_wrapper", "eval_tasks")
ANY = (*NEVER, None, True, 0, -1, 3, 1e300, -1e300, float("inf"), "x", "dict(", "dict(a=1)", "os.system", "метод", "")
NAMES: tuple[str, ...] = (
    "--algo",
    "--env",
    "--device",
    "--vec-env",
    "--preset",
    "--seed",
    "--eval-tasks",
    "--log-interval",
    "-n",
)
NAMES += (
    "--eval-episodes",
    "--num-threads",
    "--gym-packages",
    "-conf",
    "--env-kwargs",
    "--trained-agent",
    "--save-freq",
)


def misspelt(name: str, generator: random.Random) -> str:
    place = generator.randrange(len(name))
    return name[:place] + generator.choice("XQ0-") + name[place + 1 :]


def case(number: int) -> tuple[str, str, list[str], bool]:
    """Make a file, the command line's further arguments, and whether nothing but a refusal is right."""
    generator = random.Random(number)
    entry = dict(BASE)
    arguments: list[str] = []
    refused = False
    kind = generator.choice(["number", "number", "key", "other", "params", "params key", "option", "text"])
    if kind == "number":
        entry[generator.choice(NUMBERS)] = generator.choice(NEVER)
        refused = True
    elif kind == "key":
        key = generator.choice([*BASE])
        wrong = misspelt(key, generator)
        entry[wrong] = entry.pop(key)
        refused = wrong not in BASE
    elif kind == "other":
        entry[generator.choice(OTHERS)] = generator.choice(ANY)
    elif kind == "params":
        key = generator.choice([*NUMBERS, *OTHERS])
        value = generator.choice(NEVER if key in NUMBERS else ANY)
        arguments = ["-params", f"{key}:{value}"]
        refused = key in NUMBERS and str(value) != "nan"
    elif kind == "params key":
        arguments = ["-params", f"{misspelt(generator.choice(NUMBERS), generator)}:{generator.choice(ANY)}"]
        refused = True
    elif kind == "option":
        name = generator.choice(NAMES)
        arguments = [name, str(generator.choice([*ANY, "lin_1", "gpu", "key", "a:b", "None", "1e3x"]))]
        if generator.random() < 0.3:
            arguments, refused = [misspelt(name, generator) + "zz"], True
    text = yaml.safe_dump({"CartPole-v1": entry})
    if kind == "text":
        place = generator.randrange(len(text))
        text = text[:place] + generator.choice(["\x00", ":", "[", "{", "\t", "&", "!", "\n", "- "]) + text[place + 1 :]
    return kind, text, arguments, refused


class OutOfTime(BaseException):
    pass


def out_of_time(number: int, frame: Any) -> None:
    raise OutOfTime


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_every_mistake_is_one_line(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, out_of_time)
    wrong: list[tuple[Any, ...]] = []
    try:
        for number in range(block * CASES // 10, (block + 1) * CASES // 10):
            kind, text, arguments, refused = case(number)
            Path("case.yml").write_text(text, encoding="utf-8")
            command = ["train", "--algo", "ppo_l2er", "--env", "CartPole-v1", "-conf", "case.yml", "--eval-freq", "-1"]
            capsys.readouterr()
            status = None
            signal.alarm(120)
            try:
                status = main([*command, "-n", "64", "--verbose", "0", "--device", "cpu", *arguments])
            except OutOfTime:
                pass
            except BaseException as error:
                wrong.append((number, kind, arguments, f"{type(error).__name__}: {error}"))
            signal.alarm(0)
            said = capsys.readouterr().err
            lines = [line for line in said.splitlines() if "Warning" not in line and "warn" not in line]
            if status not in (None, 0) and not (lines and lines[-1].startswith("error: ") and "Traceback" not in said):
                wrong.append((number, kind, arguments, said[-300:]))
            if refused and status != 2:
                wrong.append((number, kind, arguments, text, f"status {status}"))
            if status == 2 and list(Path().glob("logs/*/*")):
                wrong.append((number, kind, arguments, "leaves a folder"))
            shutil.rmtree("logs", ignore_errors=True)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, "\n".join(map(str, wrong))
