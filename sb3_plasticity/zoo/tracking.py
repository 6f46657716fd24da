"""Runs in Weights and Biases, as rl-zoo's ``--track`` keeps them."""

import argparse
import contextlib
import time
from collections.abc import Iterator

from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder
from sb3_plasticity.zoo.spec import RunSpec


def add_tracking_options(parser: argparse.ArgumentParser) -> None:
    """
    Add the options of tracking.

    :param parser: of the command ``train``
    """
    group = parser.add_argument_group("Weights and Biases")
    group.add_argument("--track", action="store_true", help="track the run there")
    group.add_argument("--wandb-project-name", default="sb3", help="(default: sb3)")
    group.add_argument("--wandb-entity", help="team or user")
    group.add_argument("--wandb-group", help="of the run")
    group.add_argument("-tags", "--wandb-tags", nargs="+", default=[], help="such as: optimized pr-123")


@contextlib.contextmanager
def tracked(options: argparse.Namespace, spec: RunSpec, folder: RunFolder) -> Iterator[None]:
    """
    Track what is trained in this context, if the options ask for it.

    :param options: of the command line
    :param spec: of the run
    :param folder: of the run
    :raises UsageError: if the client is not installed
    """
    if not options.track:
        yield
        return
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--track: wandb is not installed: pip install wandb") from error
    run = wandb.init(
        name=f"{spec.env_id}__{spec.algo}__{spec.seed}__{int(time.time())}",
        project=options.wandb_project_name,
        entity=options.wandb_entity,
        group=options.wandb_group,
        tags=options.wandb_tags,
        config=folder.description(),
        sync_tensorboard=True,
        monitor_gym=True,
        save_code=True,
    )
    try:
        yield
    finally:
        run.finish()
