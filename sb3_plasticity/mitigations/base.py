"""What a mitigation is: arguments, the hooks it uses, and the state that survives saving."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn
from torch.utils import _pytree as pytree

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, check_count, check_names, check_number, must_be, suggests_names

LogStd = bool | Literal["only"]

# Name to class, of all that have been defined: see registry.
KNOWN: dict[str, type["Mitigation"]] = {}


class Agent:
    """
    The object that mitigations act on.

    :param networks: networks by name
    :param model: the SB3 algorithm, or None in plain PyTorch
    """

    def __init__(self, networks: Mapping[str, Network], model: Any = None) -> None:
        self.networks = dict(networks)
        self.model = model
        # Of each layer that a mitigation records, the input in its network's latest training pass: (rows, features).
        self.activations: dict[str, th.Tensor] = {}

    @property
    def progress_remaining(self) -> float:
        """From 1 to 0, as SB3's schedules take it."""
        return 1.0 if self.model is None else float(self.model._current_progress_remaining)

    @property
    def num_timesteps(self) -> int:
        """Environment steps so far; 0 without RL."""
        return 0 if self.model is None else int(self.model.num_timesteps)


class Mitigation:
    """
    Base class of mitigations. Subclasses override the hooks that they need, and several mitigations act in list order.

    ============================ ======================================================================================
    hook                         is called
    ============================ ======================================================================================
    :meth:`setup`                when training starts and the networks are known
    :meth:`gradient`             after a parameter's gradient has been accumulated, before SB3 clips it
    :meth:`feature_penalty`      in the backward pass, on the hidden activations of a network's own training pass
    :meth:`before_update`        before an optimizer takes a step, after the gradients have been clipped
    :meth:`after_update`         after an optimizer has taken a step, while ``.grad`` still exists
    :meth:`rollout_end`          after data have been collected, before the updates
    :meth:`task_change`          before the next data are collected, if the task has changed since the last time
    :meth:`rollout_start`        before the next data are collected; changes of a network's function belong here
    ============================ ======================================================================================

    Everything that must be saved and loaded with the model is stored in ``self.state``, a dictionary of numbers,
    tensors and dictionaries, which :meth:`setup` fills with ``setdefault``. Random numbers come from
    ``self.generator``, which is part of the state.

    :param coef: strength, >= 0: a number, a function of the remaining progress (from 1 to 0), or ``"lin_<number>"``;
        None for a mitigation without a strength
    :param networks: names of the networks to act on (see :func:`~sb3_plasticity.agents.networks_of`), or None for all
    :param interval: for gradients and features, act in every ``interval``-th update, at ``interval``-fold strength
    :param log_std: whether :attr:`parameters` includes those that only set the scale of exploration; ``"only"``
        includes nothing else
    :param seed: seed of ``self.generator``
    :raises ValueError: if an argument is out of range
    """

    # The name in YAML and in the log; by default the class's in snake case.
    name: ClassVar[str] = "mitigation"
    # Two mitigations that are exclusive about the same thing, such as "units", cannot act on one network.
    exclusive: ClassVar[str | None] = None
    # Whether `gradient` and `feature_penalty` depend on their arguments alone, and can enter a compiled program.
    pure: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not cls.__name__.startswith("_"):
            KNOWN[cls.name] = cls
        if "__init__" in vars(cls):
            cls.__init__ = suggests_names()(cls.__init__)  # type: ignore[method-assign]

    @suggests_names()
    def __init__(
        self,
        coef: float | Schedule | str | None = None,
        *,
        networks: Iterable[str] | None = None,
        interval: int = 1,
        log_std: LogStd = False,
        seed: int = 0,
    ) -> None:
        check_count("interval", interval, at_least=1)
        check_choice("log_std", log_std, (True, False, "only"))
        if isinstance(networks, str):
            raise must_be("networks", "None or a list of names", networks)
        self.coef = coef
        self.networks = None if networks is None else list(networks)
        self.interval = interval
        self.log_std = log_std
        self.seed = seed
        self.schedule = None if coef is None else strength_schedule("coef", coef)
        self.generator = th.Generator().manual_seed(seed)
        self.state: dict[str, Any] = {}
        # Set when it is attached: where it acts, and the parameters there by name.
        self.agent: Agent
        self.targets: dict[str, Network] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._observed: dict[str, list[Any]] = {}

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Prepare for ``self.targets`` and ``self.parameters``; refuse here what cannot be done."""

    def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
        """
        Gradient of the penalty by one parameter, to be added to the loss's.

        A function of its arguments alone, unless ``pure`` is False; constants may be written in place.

        :param name: of the parameter
        :param parameter: one of ``self.parameters``
        :param strength: a number, or a tensor without axes; it is to be included
        :param constants: what :meth:`constants` gives
        :return: of the parameter's shape
        :raises NotImplementedError: unless a subclass defines it; it is called only where one does
        """
        raise NotImplementedError

    def constants(self, name: str) -> tuple[th.Tensor, ...]:
        """
        Tensors that :meth:`gradient` of a parameter depends on besides.

        :param name: of the parameter
        :return: the same tensors in every update
        """
        return ()

    def feature_penalty(self, network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        Penalty on hidden activations, to be added to the loss with this mitigation's strength.

        A function of ``features`` alone, unless ``pure`` is False.

        :param network: whose activations they are
        :param features: for each of :meth:`feature_layers`, the matrix (rows, features) that it reads
        :return: scalar, differentiable
        :raises NotImplementedError: unless a subclass defines it; it is called only where one does
        """
        raise NotImplementedError

    def feature_layers(self, network: Network) -> tuple[str, ...]:
        """
        Names of the layers whose inputs :meth:`feature_penalty` takes.

        :param network: one of ``self.targets``
        :return: by default all that read hidden activations
        """
        return network.features

    def records(self, network: Network) -> Iterable[str]:
        """
        Names of layers whose inputs are kept in ``self.agent.activations``, for :meth:`after_update`.

        :param network: one of ``self.targets``
        :return: none by default
        """
        return ()

    def before_update(self, networks: tuple[Network, ...]) -> None:
        """
        Act before an optimizer's step.

        :param networks: those of ``self.targets`` that will be stepped
        """

    def after_update(self, networks: tuple[Network, ...]) -> None:
        """
        Act after an optimizer's step.

        :param networks: those of ``self.targets`` that were stepped
        """

    def rollout_end(self) -> None:
        """Act on the data that were collected."""

    def task_change(self) -> None:
        """Act on a new task."""

    def rollout_start(self) -> None:
        """Act before data are collected."""

    def logs(self) -> dict[str, float]:
        """
        Numbers for the log, under ``mitigation/<name>/``.

        :return: by default the strength, and the means of what was observed since the last time
        """
        found = {} if self.schedule is None else {"strength": self.strength()}
        for key, values in self._observed.items():
            if values:
                found[key] = sum(float(value) for value in values) / len(values)
        self._observed.clear()
        return found

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def strength(self) -> float:
        """Strength at the present progress; 1 for a mitigation without one."""
        return 1.0 if self.schedule is None else float(self.schedule(self.agent.progress_remaining))

    def observe(self, key: str, value: Any) -> None:
        """
        Remember a number for the log.

        :param key: its name
        :param value: a number, or a tensor of one, which is not read before it is logged
        """
        self._observed.setdefault(key, []).append(value)

    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        """
        Say whether a parameter is among ``self.parameters``; exploration's are decided by ``log_std``.

        :param name: of the parameter
        :param parameter: of one of ``self.targets``
        :return: True by default
        """
        return True

    # -- for the code that attaches it ---------------------------------------------------------------------------------

    def uses(self, hook: str) -> bool:
        """
        Whether a hook is used.

        :param hook: name of the method
        :return: by default, whether a subclass overrides it
        """
        return getattr(type(self), hook) is not getattr(Mitigation, hook)

    @property
    def needs_optimizer(self) -> bool:
        """Whether it acts on gradients or steps, and not only between rollouts."""
        return any(self.uses(hook) for hook in ("gradient", "feature_penalty", "before_update", "after_update"))

    def due(self, count: int) -> bool:
        """
        Whether an update carries the penalty.

        :param count: updates before it
        :return: True for every ``interval``-th
        """
        return count % self.interval == 0

    def bind(self, agent: Agent, state: Mapping[str, Any] | None = None) -> None:
        """
        Take up an agent.

        :param agent: to act on
        :param state: from :meth:`state_dict`, to continue from
        :raises ValueError: for networks it cannot act on
        """
        if getattr(self, "agent", None) is None or self.agent.model is not agent.model or agent.model is None:
            self.state.clear()
            self.generator.manual_seed(self.seed)
            if state:
                self.load_state_dict(state, next(iter(agent.networks.values())).root)
        self.agent = agent
        chosen = list(agent.networks) if self.networks is None else self.networks
        check_names(f"networks of {self.name}", chosen, agent.networks)
        unstepped = [name for name in chosen if agent.networks[name].optimizer is None]
        if self.needs_optimizer and unstepped:
            if self.networks is not None or len(unstepped) == len(chosen):
                raise must_be(
                    f"networks of {self.name}",
                    f"networks that an optimizer steps ({type(agent.model).__name__} moves its policy without one)",
                    unstepped[0],
                )
            chosen = [name for name in chosen if name not in unstepped]
        self.targets = {name: agent.networks[name] for name in chosen}
        excluded = {
            id(p) for name in unstepped if self.needs_optimizer for p in agent.networks[name].parameters.values()
        }
        self.parameters = {}
        for network in self.targets.values():
            for name, parameter in network.parameters.items():
                wanted = self.log_std if name in network.exploration else self.log_std != "only"
                if wanted and id(parameter) not in excluded and self.selects(name, parameter):
                    self.parameters[name] = parameter
        self.setup()

    def state_dict(self) -> dict[str, Any]:
        """Copy everything that must survive, tensors on the CPU."""

        def copied(value: Any) -> Any:
            return value.detach().cpu().clone() if isinstance(value, th.Tensor) else value

        return {**pytree.tree_map(copied, self.state), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], root: nn.Module) -> None:
        """
        Continue from a saved state.

        :param state: from :meth:`state_dict`
        :param root: on whose device tensors are to be
        """
        device = next(root.parameters()).device
        state = dict(state)
        self.generator.set_state(state.pop("generator"))

        def moved(value: Any) -> Any:
            return value.clone().to(device) if isinstance(value, th.Tensor) else value

        self.state = pytree.tree_map(moved, state)


def strength_schedule(name: str, value: Any) -> Schedule:
    """
    Read a strength.

    :param name: of the argument
    :param value: a number >= 0, a function of the remaining progress, or ``"lin_<number>"``: falling to 0
    :return: strength by remaining progress
    :raises ValueError: for anything else
    """
    if callable(value):
        return FloatSchedule(value)
    if isinstance(value, str):
        start = re.fullmatch(r"lin_(.+)", value)
        try:
            number = float(start[1]) if start else float(value)
        except ValueError:
            raise must_be(name, "a number >= 0, a schedule, or 'lin_<number>'", value) from None
        check_number(name, number, at_least=0)
        return LinearSchedule(number, 0.0, 1.0) if start else FloatSchedule(number)
    check_number(name, value, at_least=0)
    return FloatSchedule(value)
