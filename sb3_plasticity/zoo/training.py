"""One run, from its description to its final model."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch as th
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, make_output_format
from stable_baselines3.common.utils import set_random_seed

from sb3_plasticity.common.files import make_new, numbered, replacing
from sb3_plasticity.zoo import checkpoints
from sb3_plasticity.zoo.config import check_entry
from sb3_plasticity.zoo.errors import RunError, SetupError, UsageError
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.folder import RunFolder, State, step_of
from sb3_plasticity.zoo.options import check_known
from sb3_plasticity.zoo.records import EpisodeLog, Keeper
from sb3_plasticity.zoo.spec import RunSpec, note_resumed


def train(folder: RunFolder, *, verbose: int = 0, progress: bool = False) -> None:
    """
    Train the run that a folder describes to its end, from its newest checkpoint if it has one.

    A run that has come to its end is left as it is.

    :param folder: of a run, see :meth:`sb3_plasticity.zoo.spec.RunSpec.begin`
    :param verbose: 1 prints the agent's log, 2 every checkpoint
    :param progress: whether to show a progress bar
    :raises UsageError: if the run cannot be begun as it is described, or another process is training it
    :raises RunError: if it crashed; ``log.txt`` in the folder has the traceback
    :raises KeyboardInterrupt: after an interrupt; its text says how to resume
    """
    spec = RunSpec.of(folder)
    check_known(spec.algo, spec.env_id, spec.gym_packages)
    with folder.lock():
        state = folder.state()
        if state.state == "finished" and state.step >= spec.n_timesteps:
            if verbose:
                print(f"{folder.path}: finished, with {state.step:,} of {spec.n_timesteps:,} steps")
            return
        with _end_is_noted(folder, spec.n_timesteps):
            _train(spec, folder, verbose, progress)


def _train(spec: RunSpec, folder: RunFolder, verbose: int, progress: bool) -> None:
    checkpoint = checkpoints.newest_model(folder) or (Path(spec.trained_agent) if spec.trained_agent else None)
    before = folder.state()
    keeper = None
    try:
        check_entry(spec.hyperparams, "hyper-parameters", spec.algo, spec.env_id)
        set_random_seed(spec.seed)
        if spec.num_threads > 0:
            th.set_num_threads(spec.num_threads)
        with contextlib.closing(Experiment(spec, folder.path, checkpoint, verbose)) as experiment:
            start = experiment.start
            evaluations = experiment.make_evaluations()
            model = experiment.make_model()
            callbacks = experiment.make_callbacks()
            # what was lost when an attempt was killed is not part of the time that the run takes
            seconds = before.seconds * start / before.step if before.step else 0.0
            keeper = Keeper(folder, spec.save_freq, seconds, verbose)
            if folder.attempts():
                note_resumed(folder, start)
            records = folder.new_attempt(start)
            model.set_logger(_make_logger(spec, folder, records, verbose))
            with replacing(folder.files / "command.txt") as temporary:  # rl-zoo's
                temporary.write_text(" ".join(sys.orig_argv), encoding="utf-8")
            folder.write_state(State("running", start, seconds))
            log = EpisodeLog(records, spec.env_id, experiment.monitor_kwargs.get("info_keywords", ()))
            if start and verbose:
                print(f"Continuing at step {start} of {spec.n_timesteps}")
            with keeper.stopping_between_rollouts():
                experiment.train(model, [keeper, log, *callbacks, *evaluations], progress)
    except UsageError:
        raise
    except Exception as error:
        if keeper is not None and (keeper.rollouts > 1 or isinstance(error, (OSError, FloatingPointError))):
            raise
        raise SetupError(_words(error)) from error  # nothing has been learned yet
    checkpoints.save(model, folder.model)
    if spec.save_replay_buffer and hasattr(model, "save_replay_buffer"):
        with replacing(folder.path / "replay_buffer.pkl") as temporary:
            model.save_replay_buffer(temporary)
    folder.write_state(State("finished", model.num_timesteps, keeper.seconds))


@contextlib.contextmanager
def _end_is_noted(folder: RunFolder, n_timesteps: int) -> Iterator[None]:
    """Leave ``state.json`` true, whatever ends a run, and the traceback in ``log.txt``."""
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, UsageError) else _words(error)
        with contextlib.suppress(OSError):  # a full disk: what was written is whole, and this is no more to be told
            folder.write_state(replace(folder.state(), state="crashed", error=text))
            with open(folder.log, "a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
        if isinstance(error, (UsageError, OSError)):
            raise
        raise RunError(f"{text}; the last checkpoint is intact, and the traceback is in {folder.log}") from error
    except BaseException as error:  # an interrupt; or whoever asks the process to exit starts the run again
        newest = folder.last_checkpoint()
        step = (newest and step_of(newest)) or 0
        with contextlib.suppress(OSError):
            folder.write_state(replace(folder.state(), state="pending", step=step))
        if not isinstance(error, KeyboardInterrupt):
            raise
        go_on = f"resume it with: sb3-plasticity train -i {folder.path}"
        raise KeyboardInterrupt(f"at {step:,} of {n_timesteps:,} steps; {go_on}") from None


def _make_logger(spec: RunSpec, folder: RunFolder, records: Path, verbose: int) -> Logger:
    """Log to the terminal, to ``progress.csv`` and, for TensorBoard, to a folder that no other run writes to."""
    events = records
    if spec.tensorboard_log:
        name = folder.path.name if records == folder.path else f"{folder.path.name}_{records.name}"
        events = make_new(numbered(Path(spec.tensorboard_log) / spec.algo / name))
    formats: list[KVWriter] = [make_output_format("csv", str(records)), make_output_format("tensorboard", str(events))]
    if verbose >= 1:
        # keys such as eval_fixed/actuator_strength_0.512 differ in their ends
        formats.insert(0, HumanOutputFormat(sys.stdout, max_length=48))
    return Logger(folder=str(records), output_formats=formats)


def _words(error: BaseException) -> str:
    plain = type(error) in (ValueError, AssertionError) and str(error)
    return str(error) if plain else traceback.format_exception_only(error)[-1].strip()
