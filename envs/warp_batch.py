"""
The simulations of a ``mujoco.batch.Batch``, stepped by MuJoCo Warp: on a GPU, or, for debugging, on the CPU.

MuJoCo itself keeps the states and models, resets simulations and computes what follows from a state that was set, in
double precision; MuJoCo Warp does the steps, in single precision.
"""

from __future__ import annotations

import copy
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from sb3_plasticity.common.checks import check_count, must_be

from .batched import NotBatchableError, batch_class

if TYPE_CHECKING:
    from mujoco.batch import Batch

__all__ = ["WarpBatch"]

STATE = ("qpos", "qvel", "act", "qacc_warmstart")
MAX_VALUE = 1e10  # mjMAXVAL: what is beyond has diverged


class WarpBatch:
    """
    What simulations ask of a ``mujoco.batch.Batch``, with steps by MuJoCo Warp.

    :param model: shared by all simulations, up to the fields that are expanded
    :param nsim: number of simulations
    :param device: Warp's name of the device, such as ``"cuda:0"`` or ``"cpu"``; None for Warp's own choice, the first
        GPU if there is one
    :param max_contacts: contacts that there is room for, per simulation; one that has more is reported as diverged
    :raises NotBatchableError: if MuJoCo Warp is not installed, or cannot simulate the model
    :raises ValueError: for a device that is not there
    """

    def __init__(self, model: mujoco.MjModel, nsim: int, device: str | None = None, max_contacts: int = 64) -> None:
        check_count("max_contacts", max_contacts, 1)
        self._mjw, self._wp = _import("mujoco_warp"), _import("warp")
        try:
            self.device = self._wp.get_device(device)
        except ValueError:
            names = [str(name) for name in self._wp.get_devices()]
            raise must_be("device", f"one that Warp has ({', '.join(names)}) or None", device) from None
        self._host: Batch = batch_class()(model, nsim)
        self._possible_fields = importlib.import_module("mujoco.batch").MODEL_FIELDS
        self.nsim = nsim
        self._max_contacts = max_contacts
        self._ctrl, self._time = self._host.bind("ctrl"), self._host.bind("time")
        self._state = {name: self._host.bind(name) for name in STATE}
        # what follows from the state: the host's after a reset or forward, the device's after a step
        self._outputs: dict[str, np.ndarray] = {}
        self._fields: list[str] = []  # of the model, that simulations have values of their own of
        self._sent: dict[str, np.ndarray] = {}
        self._graph: Any = None
        self._check_model(model)

    @property
    def model(self) -> mujoco.MjModel:
        """The model that is shared."""
        model: mujoco.MjModel = self._host.model
        return model

    @property
    def warning(self) -> np.ndarray:
        """As ``mujoco.batch``: kinds of warnings and how often, shape (nsim, number of kinds, 2)."""
        array: np.ndarray = self._host.warning
        return array

    def bind(self, name: str) -> np.ndarray:
        """
        Return a live array of a field of all simulations.

        :param name: a field of MjData
        :return: shape (nsim, ...); only a state's is meant to be written to
        """
        field: np.ndarray = self._host.bind(name)
        if field.flags.writeable:
            return field
        return self._outputs.setdefault(name, field.copy())

    def expand(self, name: str) -> np.ndarray:
        """
        Give a field of the model values of its own in each simulation.

        :param name: a field of MjModel, or ``opt.<field>``
        :return: shape (nsim, ...), to be written to
        """
        array: np.ndarray = self._host.expand(name)
        self._note_fields()
        return array

    def expanded(self, name: str) -> np.ndarray | None:
        """
        Return a field's own values of each simulation, or None if all share them.

        :param name: a field of MjModel, or ``opt.<field>``
        :return: one row for each simulation, or None
        """
        values: np.ndarray | None = self._host.expanded(name)
        return values

    def set_const(self, ids: np.ndarray) -> None:
        """
        Derive the constants of some simulations' models anew.

        :param ids: of the simulations
        """
        self._host.set_const(ids)
        self._note_fields()

    def get_model(self, sim: int, model: mujoco.MjModel | None = None) -> mujoco.MjModel:
        """
        Return a simulation's model.

        :param sim: which simulation
        :param model: to write it into
        :return: ``model`` if it was given, else a new one
        """
        return self._host.get_model(sim, model)

    def get_data(self, sim: int, data: mujoco.MjData | None = None) -> mujoco.MjData:
        """
        Return a simulation's state.

        :param sim: which simulation
        :param data: to write it into
        :return: ``data`` if it was given, else a new one
        """
        return self._host.get_data(sim, data)

    def reset(self, ids: np.ndarray, stage: int = int(mujoco.mjtStage.mjSTAGE_ACC)) -> None:
        """
        Put simulations into the model's own state.

        :param ids: of the simulations
        :param stage: up to which to compute what follows from it
        """
        self._host.reset(ids, stage=stage)
        self._take_outputs(ids)

    def forward(self, ids: np.ndarray) -> None:
        """
        Compute what follows from the states of some simulations.

        :param ids: of the simulations
        """
        self._host.forward(ids)
        self._take_outputs(ids)

    def step(self, nstep: int = 1) -> None:
        """
        Advance all simulations on the device.

        :param nstep: by how many time steps of the model
        """
        if self._graph is None:
            self._put()
        self._send_model()
        for name, array in (*self._state.items(), ("ctrl", self._ctrl)):
            if array.size:
                getattr(self._data, name).assign(array.astype(np.float32))
        for _ in range(nstep):
            self._wp.capture_launch(self._graph)
        self._time += nstep * self.model.opt.timestep
        for name, array in (*self._state.items(), *self._outputs.items()):
            if array.size:
                array[:] = getattr(self._data, name).numpy().reshape(array.shape)
        self._warn()

    def _check_model(self, model: mujoco.MjModel) -> None:
        try:
            self._put_model(model)
        except NotImplementedError as error:
            raise NotBatchableError(f"MuJoCo Warp cannot simulate this model: {error}") from error

    def _put_model(self, model: mujoco.MjModel) -> Any:
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            # which MuJoCo Warp lacks; both solve the same convex problem
            model = copy.copy(model)
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        with self._wp.ScopedDevice(self.device):
            return self._mjw.put_model(model)

    def _put(self) -> None:
        """Build the device's model and data, and record what a step does there."""
        model = self._host.get_model(0)
        if "opt.viscosity" in self._fields:
            # MuJoCo Warp leaves the forces of a medium out for good if it has none at the start
            model.opt.viscosity = 1.0
        self._model = self._put_model(model)
        self._sent = {}
        with self._wp.ScopedDevice(self.device):
            self._data = self._mjw.make_data(
                model, self.nsim, nconmax=self._max_contacts, njmax=_rows(model, self._max_contacts)
            )
            self._send_model()
            self._mjw.step(self._model, self._data)  # compiles
            with self._wp.ScopedCapture() as capture:
                self._mjw.step(self._model, self._data)
        self._graph = capture.graph

    def _send_model(self) -> None:
        """Copy those expanded fields to the device that have changed since the last time."""
        for name in self._fields:
            values = self._host.expanded(name)
            assert values is not None
            owner, field = (self._model.opt, name[4:]) if name.startswith("opt.") else (self._model, name)
            array = getattr(owner, field, None)
            if array is None or (name in self._sent and np.array_equal(self._sent[name], values)):
                continue  # MuJoCo Warp does without the field, or has these values
            if name in self._sent:
                array.assign(values.astype(np.float32))
            else:  # shared by all so far
                own = self._wp.array(values.astype(np.float32), dtype=array.dtype, device=self.device)
                setattr(owner, field, own)
            self._sent[name] = values.copy()

    def _note_fields(self) -> None:
        """Let the device's model be built anew if more fields are expanded than before."""
        fields = sorted(name for name in self._possible_fields if self._host.expanded(name) is not None)
        if fields != self._fields:
            self._fields, self._graph = fields, None

    def _take_outputs(self, ids: np.ndarray) -> None:
        for name, array in self._outputs.items():
            array[ids] = self._host.bind(name)[ids]

    def _warn(self) -> None:
        """Report diverged simulations by MuJoCo's own warnings."""
        kinds, counts = mujoco.mjtWarning, self.warning[:, :, 1]
        for name, kind in (("qpos", kinds.mjWARN_BADQPOS), ("qvel", kinds.mjWARN_BADQVEL)):
            counts[:, int(kind)] += ~(np.abs(self._state[name]) <= MAX_VALUE).all(axis=1)
        counts[:, int(kinds.mjWARN_CONTACTFULL)] += self._data.overflow.numpy() != 0
        self._data.overflow.zero_()


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotBatchableError(
            f"MuJoCo Warp is not installed ({error}): pip install 'sb3-plasticity[warp]'"
        ) from error


def _rows(model: mujoco.MjModel, contacts: int) -> int:
    """
    Count the constraints that a simulation can have.

    :param model: of the simulation
    :param contacts: most contacts at once
    """
    dim = int(model.geom_condim.max(initial=1))
    pyramidal = model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    of_contact = 2 * (dim - 1) if pyramidal and dim > 1 else dim
    limits, friction = model.njnt + model.ntendon, model.nv + model.ntendon
    return int(contacts * of_contact + limits + friction + 6 * model.neq)
