"""Nothing needs POSIX to be imported; without a Windows machine, its lack of POSIX is acted out."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Other projects look at the platform when they are imported, so they are imported before it is changed.
IMPORT_ALL = """
import ast, importlib, os, signal, sys
from pathlib import Path

root = Path(sys.argv[1])
names = {}
for place, package in (("sb3_plasticity", "sb3_plasticity"), ("envs", "sb3_plasticity.envs")):
    for path in sorted((root / place).rglob("*.py")):
        parts = [package, *path.relative_to(root / place).with_suffix("").parts]
        if parts[-1] != "__main__":
            names[".".join(parts).removesuffix(".__init__")] = path
for path in names.values():
    for node in ast.parse(path.read_text()).body:
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module]
        for name in found:
            if not name.startswith("sb3_plasticity"):
                importlib.import_module(name)
assert "sb3_plasticity" not in sys.modules

for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline", "syslog"):
    sys.modules[name] = None  # importing it fails
for module, missing in (
    (os, ("fork", "forkpty", "killpg", "getpgid", "setsid", "getuid", "geteuid", "uname", "nice", "sched_getaffinity")),
    (signal, ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "setitimer", "pthread_sigmask")),
):
    for name in missing:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "win32"
for name in names:
    importlib.import_module(name)

import gymnasium as gym
env = gym.make("SlipperyAnt-v0")
env.reset(seed=0)
print(len(names), env.step(env.action_space.sample())[0].shape)
"""


def test_everything_imports_without_posix(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(ROOT)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    number, shape = process.stdout.splitlines()[-1].split(maxsplit=1)
    assert int(number) > 100 and shape == "(27,)"
