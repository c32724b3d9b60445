"""D4RL physics, termination rules, scores and evaluation, against published numbers, real data and the simulators."""

import importlib
import math

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from conftest import ROOT, pendulum_log, write_hdf5
from gymnasium.envs.classic_control.pendulum import PendulumEnv


@pytest.fixture
def rambo():
    """The plumbing is word for word the same in both scripts, see test_twins.py: one of them is enough here."""
    return importlib.import_module("rambo_continuous")


REAL_SEGMENTS = ROOT.parent / "shared" / "d4rl_real_segments"
# The simulator of each termination rule
SIMULATORS = {
    "Hopper": "Hopper-v4",
    "Walker2d": "Walker2d-v4",
    "HalfCheetah": "HalfCheetah-v4",
    "Ant": "Ant-v4",
    "Humanoid": "Humanoid-v4",
    "InvertedPendulum": "InvertedPendulum-v4",
    "Swimmer": "Swimmer-v4",
    "Reacher": "Reacher-v4",
    "Pusher": "Pusher-v5",
    "Pendulum": "Pendulum-v1",
    "MountainCarContinuous": "MountainCarContinuous-v0",
}


@pytest.fixture(autouse=True)
def in_a_temporary_folder(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT into the current folder."""
    monkeypatch.chdir(tmp_path)


def test_bodies_weigh_what_they_weighed_when_d4rl_was_recorded(rambo, subtests):
    for env_id, masses in [  # Gym -v2 under MuJoCo 2.0, body by body without the world
        ("hopper-medium-v2", [3.53429174, 3.92699082, 2.71433605, 5.0893801]),
        (
            "halfcheetah-random-v2",
            [6.36031332, 1.53524804, 1.58093995, 1.0691906, 1.42558747, 1.17885117, 0.84986945],
        ),
    ]:
        with subtests.test(env_id=str(env_id), masses=str(masses)):
            model = rambo.make_env(env_id).unwrapped.model
            np.testing.assert_allclose(model.body_mass[1:], masses, rtol=1e-7)
            stock = rambo.make_env(env_id, d4rl_physics=False).unwrapped.model
            assert np.abs(stock.body_mass[1:] - masses).max() > 0.01


@pytest.mark.parametrize("name, num_positions", [("hopper", 5), ("walker2d", 8)])
def test_real_d4rl_transitions_are_reproduced(rambo, name, num_positions):
    """One step from each recorded state with its recorded action: 99 % end within 1e-5 of the recorded next state."""
    path = REAL_SEGMENTS / f"{name}-medium-replay-v2_segments.npz"
    if not path.is_file():
        pytest.skip(f"no real D4RL transitions at {path}")
    with np.load(path) as file:
        data = dict(file)
    usable = np.flatnonzero(data["next_from_data"] & (data["residual"] < 1e-4))
    _, first = np.unique(data["d4rl_index"][usable], return_index=True)
    usable = usable[first][::3]
    # velocities beyond +-10 were clipped when they were recorded
    usable = usable[np.abs(data["observations"][usable, num_positions:]).max(1) < 9.99]
    assert len(usable) > 2000
    env = rambo.make_env(f"{name}-medium-replay-v2")
    env.reset()
    errors = []
    for row in usable:
        observation = data["observations"][row]
        env.unwrapped.set_state(np.append(0, observation[:num_positions]), observation[num_positions:])
        env.unwrapped.data.qacc_warmstart[:] = 0
        next_observation = env.unwrapped.step(data["actions"][row].astype(np.float64))[0]
        errors.append(np.abs(next_observation - data["next_observations"][row]).max())
    assert np.median(errors) < 1e-6
    assert np.mean(np.array(errors) < 1e-5) >= 0.99


def test_contact_margins_are_halved_from_mujoco_3_5_on(rambo, monkeypatch, subtests):
    for version, factor in [("2.3.7", 1), ("3.4.0", 1), ("3.5.0", 0.5), ("3.10.1", 0.5), ("4.0.0", 0.5)]:
        with subtests.test(version=str(version), factor=str(factor)):
            stock = gym.make("Hopper-v4").unwrapped.model.geom_margin
            monkeypatch.setattr(mujoco, "__version__", version)
            margins = rambo.make_env("hopper-medium-v2").unwrapped.model.geom_margin
            assert stock.max() > 0
            np.testing.assert_allclose(margins, factor * stock)


def test_d4rl_ids_are_v4_with_their_time_limit_and_other_ids_stay_as_they_are(rambo):
    specs = {"hopper-mini-v2": "Hopper-v4", "walker2d-expert-v2": "Walker2d-v4", "Swimmer-v5": "Swimmer-v5"}
    for env_id, spec in specs.items():
        env = rambo.make_env(env_id)
        assert env.spec.id == spec and env.spec.max_episode_steps == 1000
    stock, env = gym.make("Hopper-v4").unwrapped.model, rambo.make_env("Hopper-v4").unwrapped.model
    np.testing.assert_array_equal(stock.body_mass, env.body_mass)
    assert rambo.make_env("pendulum-mini").spec.id == "Pendulum-v1"


def visited_states(env, rng):
    """Next observations and the simulator's verdict: random episodes, and single steps from extreme states."""
    simulator = env.unwrapped
    for episode in range(20):
        observation, _ = env.reset(seed=episode)
        scale = 0.0
        if episode >= 5 and hasattr(simulator, "set_state"):  # far-out positions and angles, for example lying, upside down
            scale = rng.choice([0.1, 0.3, 1.0, 3.0])
        for _ in range(20):
            if scale:
                qpos = simulator.init_qpos + scale * rng.normal(size=simulator.init_qpos.shape)
                simulator.set_state(qpos, scale * rng.normal(size=simulator.init_qvel.shape))
            elif episode >= 5 and env.spec.id.startswith("MountainCar"):
                simulator.state = np.array([rng.uniform(0.3, 0.6), rng.uniform(-0.07, 0.07)], dtype=np.float32)
            action = rng.uniform(env.action_space.low, env.action_space.high)
            observation, _, terminated, truncated, _ = env.step(action.astype(np.float32))
            yield observation, terminated
            if (terminated and not scale) or truncated:
                break
        env.close()


def test_every_termination_rule_is_tested(rambo):
    assert SIMULATORS.keys() == rambo.TERMINATION_RULES.keys()


def test_termination_rules_agree_with_the_simulator(rambo, subtests):
    for name in SIMULATORS:
        with subtests.test(name=str(name)):
            env = gym.make(SIMULATORS[name])
            rule = rambo.termination_rule(env)
            assert rule is rambo.TERMINATION_RULES[name]
            observations, verdicts = map(np.array, zip(*visited_states(env, np.random.default_rng(0)), strict=True))
            np.testing.assert_array_equal(rule(observations), verdicts)
            on_the_device = rule(torch.as_tensor(observations, dtype=torch.float32))
            assert on_the_device.dtype == torch.bool and on_the_device.shape == verdicts.shape
            assert (on_the_device.numpy() == verdicts).mean() > 0.99  # rounding to float32 can cross a threshold
            nested = rule(torch.as_tensor(observations[None], dtype=torch.float32))
            assert torch.equal(nested[0], on_the_device), "any leading shape"
            ends = name not in ("HalfCheetah", "Swimmer", "Reacher", "Pusher", "Pendulum")
            assert verdicts.any() == ends and not verdicts.all(), "the test sees both verdicts wherever both exist"


def test_a_state_that_is_not_a_number_ends_an_episode(rambo, subtests):
    """Such a state can come out of a model that blows up, and must not be rolled on from."""
    for name in SIMULATORS:
        with subtests.test(name=str(name)):
            env = gym.make(SIMULATORS[name])
            observation, _ = env.reset(seed=0)
            observation = observation.astype(np.float32)
            observation[0] = math.nan
            assert rambo.TERMINATION_RULES[name](observation)
            assert rambo.TERMINATION_RULES[name](torch.as_tensor(observation))


def test_hopper_ends_at_any_coordinate_beyond_100_of_either_sign(rambo):
    """Two known implementations write abs(x < 100), the absolute value of a boolean, which lets -150 pass."""
    rule, healthy = rambo.TERMINATION_RULES["Hopper"], np.array([1.25, *[0.0] * 10])
    assert not rule(healthy)
    for coordinate in range(2, 11):
        for value in (-150, 150, -100, 100, math.inf, -math.inf, math.nan):
            state = healthy.copy()
            state[coordinate] = value
            assert rule(state) and rule(torch.as_tensor(state)), (coordinate, value)
        state[coordinate] = -99
        assert not rule(state)
    for coordinate, value in ((0, 0.69), (0, math.inf), (1, 0.21), (1, -0.21)):
        state = healthy.copy()
        state[coordinate] = value
        assert rule(state), (coordinate, value)
    assert not rule(np.array([150.0, *[0.0] * 10])), "the height has no upper bound"


def test_an_environment_without_a_rule_is_refused(rambo):
    with pytest.raises(rambo.InputError, match="TERMINATION_RULES as 'InvertedDoublePendulum'"):
        rambo.termination_rule(gym.make("InvertedDoublePendulum-v4"))


def test_normalised_scores(rambo):
    for name, (low, high) in {
        "hopper": (-20.272305, 3234.3), "halfcheetah": (-280.178953, 12135.0), "walker2d": (1.629008, 4592.3)
    }.items():  # fmt: skip
        scores = rambo.normalized_score(f"{name}-medium-replay-v2", np.array([low, high, (low + high) / 2]))
        np.testing.assert_allclose(scores, [0, 100, 50], atol=1e-9)
    # The spread of scores is that of the returns, divided by the range: no offset
    returns = np.array([1000.0, 2000.0])
    assert rambo.normalized_score("hopper-medium-v2", returns).std() == pytest.approx(100 * 500 / (3234.3 + 20.272305))
    assert np.isnan(rambo.normalized_score("Pendulum-v1", returns)).all()
    assert np.isfinite(rambo.normalized_score("hopper-mini-v2", returns)).all()


@pytest.mark.parametrize("env_id", ["hopper-medium-v2", "Pendulum-v1"])
def test_evaluation_is_a_plain_loop_over_episodes(rambo, env_id):
    """Hopper's episodes end at different times; Pendulum's actions reach from -2 to 2."""
    gamma, seed = 0.9, 123
    env = rambo.make_env(env_id)
    weights = np.random.default_rng(0).normal(size=(env.observation_space.shape[0], env.action_space.shape[0]))

    def policy(observations):
        return np.tanh(observations @ weights)

    envs = gym.vector.SyncVectorEnv([lambda: rambo.make_env(env_id)] * 4)
    result = rambo.evaluate(policy, envs, seed, gamma)
    seeds = np.random.SeedSequence(seed).generate_state(4)
    for episode in range(4):
        observation, _ = env.reset(seed=int(seeds[episode]))
        np.testing.assert_allclose(result.first_observations[episode], observation, rtol=1e-6)
        rewards, done = [], False
        while not done:
            action = policy(observation[None])[0] * env.action_space.high
            observation, reward, terminated, truncated, _ = env.step(action.astype(env.action_space.dtype))
            rewards.append(reward)
            done = terminated or truncated
        assert result.lengths[episode] == len(rewards)
        assert result.returns[episode] == pytest.approx(sum(rewards), rel=1e-4)
        discounted = sum(gamma**step * reward for step, reward in enumerate(rewards))
        assert result.discounted_returns[episode] == pytest.approx(discounted, rel=1e-4)
    if env_id.startswith("hopper"):
        assert len(set(result.lengths)) > 1
    else:
        assert (result.lengths == 200).all()


def test_no_two_runs_are_evaluated_in_the_same_episodes(rambo):
    """Neither the seeds of an experiment nor the iterations of a run share a first state: else their spread hides it."""
    firsts = set()
    for seed in ([1, 0], [1, 1], [2, 0], [2, 1]):
        envs = gym.vector.SyncVectorEnv([lambda: rambo.make_env("pendulum-mini")] * 10)
        result = rambo.evaluate(lambda observations: np.zeros((10, 1)), envs, seed, 0.99)
        firsts |= {tuple(observation) for observation in result.first_observations}
    assert len(firsts) == 40


class Endless(PendulumEnv):
    """Registered without a time limit, as people do with their own environments."""


class Fixed(PendulumEnv):
    """A second actuator that is switched off: its bounds are equal."""

    def __init__(self, **options):
        super().__init__(**options)
        self.action_space = gym.spaces.Box(np.array([-2, 0.5], np.float32), np.array([2, 0.5], np.float32))

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action[:1])


@pytest.fixture
def own_environments():
    """Pendulum-v98 never ends; Pendulum-v99 has an actuator without a range."""
    gym.register("Pendulum-v98", entry_point=Endless)
    gym.register("Pendulum-v99", entry_point=Fixed, max_episode_steps=20)
    yield
    for env_id in ("Pendulum-v98", "Pendulum-v99"):
        del gym.registry[env_id]


def test_an_environment_without_a_time_limit_gets_one(rambo, own_environments):
    env = rambo.make_env("Pendulum-v98")
    assert env.spec.max_episode_steps == 1000
    result = rambo.evaluate(lambda o: np.zeros((1, 1)), gym.vector.SyncVectorEnv([lambda: env]), 1, 0.99)
    assert result.lengths.tolist() == [1000]


def test_an_actuator_whose_bounds_are_equal(rambo, own_environments, tmp_path):
    log = pendulum_log()
    log["actions"] = np.concatenate([log["actions"], np.full_like(log["actions"], 0.5)], 1)
    env = rambo.make_env("Pendulum-v99")
    dataset = rambo.load_dataset("Pendulum-v99", str(write_hdf5(tmp_path / "fixed.hdf5", log)), env)
    assert np.isfinite(dataset.rows).all()
    envs = gym.vector.SyncVectorEnv([lambda: rambo.make_env("Pendulum-v99")])
    assert np.isfinite(rambo.evaluate(lambda observations: np.ones((1, 2)), envs, 1, 0.99).returns).all()


def test_ids_that_gymnasium_refuses(rambo, subtests):
    for env_id in ["Hopper-v2", "Pusher-v4", "not_installed:Pendulum-v1", "gymnasium.nowhere:Thing-v0", "-"]:
        with subtests.test(env_id=str(env_id)):
            with pytest.raises(rambo.InputError) as error:
                rambo.make_env(env_id)
            assert env_id in str(error.value) and "\n" not in str(error.value)
            assert ("did you mean" in str(error.value)) == (env_id == "-"), "another id is no help against an ImportError"


def test_real_d4rl_terminals_agree_with_the_rule(rambo, tmp_path):
    """The check that refuses other environments' logs must let D4RL's own pass."""
    for name in ("hopper", "walker2d"):
        path = REAL_SEGMENTS / f"{name}-medium-replay-v2_segments.npz"
        if not path.is_file():
            pytest.skip(f"no real D4RL transitions at {path}")
        with np.load(path) as file:
            data = {key: file[key] for key in ("observations", "actions", "rewards", "terminals", "next_observations")}
        env_id = f"{name}-medium-replay-v2"
        dataset = rambo.load_dataset(env_id, str(write_hdf5(tmp_path / "real.hdf5", data)), rambo.make_env(env_id))
        assert dataset.rows[:, -1].sum() == data["terminals"].sum() > 0
