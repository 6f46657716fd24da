"""Every parameter must move the simulation as physics says, not only change a number in the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from sb3_plasticity.envs.physics import PARAMETERS
from sb3_plasticity.envs.robots.ant import SlipperyAntEnv
from sb3_plasticity.envs.robots.half_cheetah import SlipperyHalfCheetahEnv
from sb3_plasticity.envs.robots.swimmer import SlipperySwimmerEnv

ROBOTS = [f"Slippery{name}-v0" for name in ("Ant", "HalfCheetah", "Hopper", "Walker2d", "Humanoid")]

# A box on a plane and, out of its way, a wheel that a motor turns against the damping of its bearing. HalfCheetah-v5
# asks nothing of its model but a timestep that fits its metadata.
BENCH = """
<mujoco>
  <option timestep="0.01" gravity="0 0 -9.81" integrator="{integrator}"/>
  <default><geom friction="0.4 0.005 0.0001"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="100 100 1"/>
    <body name="box" pos="0 0 0.1">
      <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom type="box" size="0.1 0.1 0.1" density="1000" {solver}/>
    </body>
    <body name="wheel" pos="0 50 5">
      <joint name="bearing" type="hinge" axis="0 1 0" damping="0.5"/>
      <geom type="cylinder" size="0.2 0.05" euler="90 0 0" density="100" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor joint="bearing" gear="3" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Any]:
    file = tmp_path / "bench.xml"
    file.write_text(BENCH.format(integrator="Euler", solver='solref="0.01 1" solimp="0.99 0.99 0.001"'))

    def make(parameter: str, value: float) -> SlipperyHalfCheetahEnv:
        env = gym.make(
            "SlipperyHalfCheetah-v0",
            xml_file=str(file),
            parameter=parameter,
            schedule={"kind": "constant", "value": value},
            reset_noise_scale=0.0,
            max_episode_steps=10**6,
        )
        env.reset(seed=0)
        return env.unwrapped

    return make


def constant(env_id: str, parameter: str, value: float, **keywords: Any) -> SlipperyAntEnv | SlipperySwimmerEnv:
    env = gym.make(env_id, parameter=parameter, schedule={"kind": "constant", "value": value}, **keywords).unwrapped
    env.reset(seed=0)
    return env


def idle(env: SlipperyHalfCheetahEnv | SlipperyAntEnv, steps: int) -> None:
    for _ in range(steps):
        env.do_simulation(np.zeros(env.model.nu), env.frame_skip)


@pytest.mark.parametrize("value", [0.02, 2.0])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_friction_reaches_the_contacts_of_a_running_robot(env_id: str, value: float) -> None:
    env = constant(env_id, "friction", value)
    own = mujoco.MjModel.from_xml_path(env.fullpath).geom_friction[:, 0]
    uniform = env_id not in ("SlipperyHopper-v0", "SlipperyWalker2d-v0")
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(300):
        env.step(rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32))
        for contact in env.data.contact[: env.data.ncon]:
            # MuJoCo takes the larger of the two
            expected = value if uniform else own[contact.geom].max() * value
            assert contact.friction[0] == contact.friction[1] == pytest.approx(expected, rel=1e-12)
            seen.add(tuple(contact.geom))
    assert any(0 in pair for pair in seen)  # the floor


@pytest.mark.parametrize("env_id", ROBOTS)
def test_only_sliding_friction_changes(env_id: str) -> None:
    env = constant(env_id, "friction", 0.123)
    own: Any = gym.make(env_id).unwrapped
    np.testing.assert_array_equal(env.model.geom_friction[:, 1:], own.model.geom_friction[:, 1:])


@pytest.mark.parametrize(("value", "speed"), [(0.1, 2.0), (0.4, 2.0), (0.8, 3.0)])
def test_friction_stops_a_sliding_box_after_v2_over_2_mu_g(
    bench: Callable[..., Any], value: float, speed: float
) -> None:
    env = bench("friction", value)
    idle(env, 20)  # settle
    start = env.data.qpos[0]
    env.data.qvel[0] = speed
    idle(env, int(speed / (value * 9.81) / env.dt) + 20)
    assert env.data.qpos[0] - start == pytest.approx(speed**2 / (2 * value * 9.81), rel=0.03)
    assert abs(env.data.qvel[0]) < 1e-3


@pytest.mark.parametrize("value", [1.62, 9.81, 24.79])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_gravity_is_the_acceleration_of_free_fall(env_id: str, value: float) -> None:
    env = constant(env_id, "gravity", value)
    height = 1 if env.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_SLIDE else 2
    env.data.qpos[height] += 1000.0
    env.data.qvel[:] = 0.0
    mujoco.mj_forward(env.model, env.data)

    def centre_of_mass() -> float:
        mujoco.mj_forward(env.model, env.data)
        return float(env.data.subtree_com[0, 2])

    start, time = centre_of_mass(), env.data.time
    idle(env, 20)
    time = env.data.time - time
    fallen = value * time**2 / 2
    if env.model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER:
        fallen += value * time * env.model.opt.timestep / 2  # semi-implicit Euler moves with the newer velocity
    # the limbs swing, but no inner force moves the centre of mass
    assert start - centre_of_mass() == pytest.approx(fallen, rel=2e-3)


@pytest.mark.parametrize("value", [0.5, 2.0])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_mass_scales_the_mass_matrix_but_not_the_armature(env_id: str, value: float) -> None:
    env, own = constant(env_id, "mass", value), constant(env_id, "mass", 1.0)

    def mass_matrix(env: SlipperyAntEnv) -> np.ndarray:
        env.set_state(env.init_qpos, env.init_qvel)
        full = np.zeros((env.model.nv, env.model.nv))
        try:
            mujoco.mj_fullM(env.model, env.data, full)
        except TypeError:  # MuJoCo 3
            mujoco.mj_fullM(env.model, full, env.data.qM)
        return full - np.diag(env.model.dof_armature)

    np.testing.assert_allclose(mass_matrix(env), value * mass_matrix(own), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_mass_is_that_of_an_ant_compiled_with_another_density(value: float) -> None:
    """MuJoCo's own compiler is the oracle for everything that follows from mass and inertia."""
    env = constant("SlipperyAnt-v0", "mass", value)
    spec = mujoco.MjSpec.from_file(env.fullpath)
    for geom in spec.geoms:
        geom.density *= value
    oracle = spec.compile()
    for name in ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"):
        np.testing.assert_allclose(getattr(env.model, name), getattr(oracle, name), rtol=1e-9, err_msg=name)


def test_mass_presses_on_the_ground(bench: Callable[..., Any]) -> None:
    for value, expected in [(1.0, 8.0 * 9.81), (2.5, 20.0 * 9.81)]:  # a cube of 0.2 m at 1000 kg/m^3
        env = bench("mass", value)
        idle(env, 100)
        forces = np.zeros((env.data.ncon, 6))
        for i in range(env.data.ncon):
            mujoco.mj_contactForce(env.model, env.data, i, forces[i])
        assert forces[:, 0].sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("value", "speed"), [(1.0, 6.0), (2.0, 3.0), (0.5, 12.0)])
def test_damping_sets_the_terminal_speed(bench: Callable[..., Any], value: float, speed: float) -> None:
    env = bench("damping", value)
    for _ in range(400):
        env.do_simulation(np.ones(1), env.frame_skip)
    assert env.data.qvel[2] == pytest.approx(speed, rel=1e-6)  # torque 3 over damping 0.5


@pytest.mark.parametrize(("value", "speed"), [(1.0, 6.0), (2.0, 12.0), (0.25, 1.5)])
def test_actuator_strength_scales_the_torque(bench: Callable[..., Any], value: float, speed: float) -> None:
    env = bench("actuator_strength", value)
    env.do_simulation(np.ones(1), 1)
    assert env.data.qfrc_actuator[2] == pytest.approx(3.0 * value)
    for _ in range(400):
        env.do_simulation(np.ones(1), env.frame_skip)
    assert env.data.qvel[2] == pytest.approx(speed, rel=1e-6)


@pytest.mark.parametrize("env_id", ROBOTS)
@pytest.mark.parametrize("parameter", ["damping", "actuator_strength"])
def test_damping_and_strength_scale_the_forces_of_every_robot(env_id: str, parameter: str) -> None:
    forces = []
    for value in (1.0, 1.5):
        env = constant(env_id, parameter, value)
        env.data.qvel[:] = np.linspace(-1, 1, env.model.nv)
        env.data.ctrl[:] = np.linspace(-0.4, 0.4, env.model.nu)
        mujoco.mj_forward(env.model, env.data)
        forces.append(np.array(env.data.qfrc_damper if parameter == "damping" else env.data.qfrc_actuator))
    assert np.abs(forces[0]).max() > 0
    np.testing.assert_allclose(forces[1], 1.5 * forces[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("parameter", "old", "new", "message"),
    [
        ("friction", "<actuator>", '<contact><pair geom1="floor" geom2="cube"/></contact><actuator>', "contact pairs"),
        ("gravity", "0 0 -9.81", "0 0 0", "no gravity"),
    ],
)
def test_models_that_a_parameter_cannot_change_are_refused(
    tmp_path: Path, parameter: str, old: str, new: str, message: str
) -> None:
    file = tmp_path / "bench.xml"
    xml = BENCH.format(integrator="Euler", solver='name="cube"')
    file.write_text(xml.replace(old, new))
    with pytest.raises(ValueError, match=message):
        gym.make("SlipperyHalfCheetah-v0", xml_file=str(file), parameter=parameter)


@pytest.mark.parametrize("value", [0.1, 3.0])
def test_viscosity_gives_stokes_drag(tmp_path: Path, value: float) -> None:
    """A sphere of diameter d in a medium without density: force 3 pi viscosity d v, MuJoCo's inertia-box model."""
    env = constant("SlipperySwimmer-v0", "viscosity", value)
    env.model.opt.density = 0.0
    env.set_state(env.init_qpos, env.init_qvel)
    env.data.qvel[0] = 1.0
    mujoco.mj_forward(env.model, env.data)
    drag = 0.0
    for body in range(1, env.model.nbody):
        inertia, mass = env.model.body_inertia[body], env.model.body_mass[body]
        box = np.sqrt(6 * (inertia.sum() - 2 * inertia) / mass)  # edges of the box of equal inertia
        drag += 3 * np.pi * value * box.mean()
    assert env.data.qfrc_passive[0] == pytest.approx(-drag, rel=1e-9)


def test_paralysis_takes_the_strength_of_the_named_actuators_only() -> None:
    paralysed = {"kind": "paralysis", "period": 10}
    env: Any = gym.make(
        "SlipperyAnt-v0", parameter="actuator_strength", actuators=["hip_1", "ankle_1"], schedule=paralysed, task=4
    ).unwrapped
    ant: Any = gym.make("Ant-v5").unwrapped
    own = ant.model.actuator_gainprm
    named = [i for i in range(8) if env.model.joint(env.model.actuator_trnid[i, 0]).name in ("hip_1", "ankle_1")]
    assert len(named) == 2 and not env.model.actuator_gainprm[named].any()
    others = np.setdiff1d(range(8), named)
    np.testing.assert_array_equal(env.model.actuator_gainprm[others], own[others])
    env.set_task(1)
    np.testing.assert_array_equal(env.model.actuator_gainprm[named], 0.75 * own[named])


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_value_can_come_back_to_the_robots_own(parameter: str) -> None:
    """No drift: after many tasks the model is bit for bit as compiled."""
    env: Any = gym.make(
        "SlipperyHopper-v0",
        parameter=parameter,
        schedule={
            "kind": "cyclic",
            "values": [0.3, 3.3, {"gravity": 9.81, "viscosity": 0.0}.get(parameter, 1.0)],
            "period": 1,
        },
    ).unwrapped
    compiled = mujoco.MjModel.from_xml_path(env.fullpath)
    for task in range(30):
        env.set_task(task)
        env.reset(seed=0)
    for name in ("geom_friction", "body_mass", "body_inertia", "dof_damping", "actuator_gainprm", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(env.model, name), getattr(compiled, name), err_msg=name)
    np.testing.assert_array_equal(env.model.opt.gravity, compiled.opt.gravity)
    assert env.model.stat.meaninertia == compiled.stat.meaninertia
