"""benchmark/imagine.py: the command line on tiny runs, the state of the simulator, the comparison of the models, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import imagine
import numpy as np
import pytest
import torch
from conftest import HOPPER, ROOT, run_as_main, run_here, run_script
from PIL import Image

import rambo_continuous

SCRIPT = ROOT / "benchmark" / "imagine.py"
FEW = "--starts 10 --horizon 6 --points 20".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that gives the folder of a tiny run with --save-model of a dataset; each run is made once."""
    folder, made = tmp_path_factory.mktemp("imagine"), {}

    def run(env_id: str) -> Path:
        if env_id not in made:
            with pytest.MonkeyPatch.context() as patch, torch.enable_grad():  # the first test that asks for a run trains it
                patch.chdir(folder)
                made[env_id] = run_here(rambo_continuous, *HOPPER, "--env-id", env_id, "--save-model", "--no-cuda").resolve()
        return made[env_id]

    return run


@pytest.fixture
def copy_of(runs, tmp_path):
    """A function that copies a tiny run, to be spoilt."""
    return lambda env_id: shutil.copytree(runs(env_id), tmp_path / "run")


def assert_is_a_picture(path: Path) -> None:
    """A PNG under 300 kB on an opaque light background, with something drawn on it."""
    assert path.stat().st_size < 300_000
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[:2, :, :3] > 200).all() and (pixels[-2:, :, :3] > 200).all()
    assert 0.005 < (pixels[..., :3].min(-1) < 200).mean() < 0.9
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20


def assert_refused(result, *expected: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for text in expected:
        assert text in lines[0]


def test_pendulum(runs, tmp_path):
    """The pictures go to --output."""
    result = run_as_main(SCRIPT, runs("pendulum-mini"), *FEW, "--output", tmp_path / "pictures")
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["parting.png", "trajectories.png"]
    for path in (tmp_path / "pictures").iterdir():
        assert_is_a_picture(path)
    assert "Spearman correlation" in result.stdout and "left out" not in result.stdout


def test_files_of_the_jax_script(copy_of):
    """A policy, a model and a checkpoint as the twin saves them."""
    jax = pytest.importorskip("jax")
    import rambo_continuous_jax as twin

    folder = copy_of("pendulum-mini")
    with np.load(folder / "policy.npz") as file:
        more = {key: file[key] for key in ("obs_mean", "obs_std", "fingerprint", "env_id")}
    agent = twin.init_agent(jax.random.PRNGKey(0), 3, 1, 1.0)
    dynamics = twin.Dynamics(5, 3, 1, 32, twin.nnx.Rngs(0))
    (folder / "checkpoint.pt").unlink()
    nothing = jax.numpy.zeros(1)
    state = twin.TrainState(agent, dynamics, nothing, nothing, nothing)
    for name, tree in {"policy": agent.actor, "dynamics": dynamics, "checkpoint": state}.items():
        np.savez(folder / f"{name}.npz", **twin.to_numpy(tree), **more)
    saved = imagine.load_run(folder)
    assert saved.has_critic
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(8, 3)).astype(np.float32), rng.uniform(-1, 1, (8, 1)).astype(np.float32)
    pair = torch.as_tensor(observations), torch.as_tensor(actions)
    np.testing.assert_allclose(saved.agent.critic(*pair).detach(), agent.critic(observations, actions), atol=1e-5)
    np.testing.assert_allclose(saved.agent.actor.mode(pair[0]).detach(), agent.actor.mode(observations), atol=1e-5)
    ours = saved.models["adversarial model"](*(x.expand(5, -1, -1) for x in pair))
    theirs = dynamics(*(np.broadcast_to(x, (5, *x.shape)) for x in (observations, actions)))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x.detach(), y, atol=1e-5)


def test_hopper_with_video(runs):
    result = run_script(SCRIPT, runs("hopper-mini-v2"), *FEW, "--video", "--video-starts", 1)
    assert result.returncode == 0, result.stderr
    folder = runs("hopper-mini-v2") / "imagine"
    assert sorted(p.name for p in folder.iterdir()) == ["filmstrip.png", "imagine.mp4", "parting.png", "trajectories.png"]
    for path in folder.glob("*.png"):
        assert_is_a_picture(path)
    from moviepy import VideoFileClip

    with VideoFileClip(str(folder / "imagine.mp4")) as video:
        frame = video.get_frame(0)
    panes = np.split(frame.astype(float), 3, axis=1)
    assert all(pane.std() > 10 for pane in panes)
    assert np.abs(panes[0][40:] - panes[2][40:]).mean() < 3  # below their labels: the same start state


def test_without_a_critic(copy_of, capsys):
    """No checkpoint, or one of another policy: the predicted values are left out, and a line says so."""
    folder = copy_of("pendulum-mini")
    args = imagine.Args(folder, starts=5, horizon=3, points=10)
    shutil.copy(folder / "policy.npz", folder / "kept.npz")
    with np.load(folder / "policy.npz") as file:
        np.savez(folder / "policy.npz", **dict(file) | {"fc1.bias": file["fc1.bias"] + 1})
    imagine.main(args)
    assert "Predicted values are left out" in capsys.readouterr().out
    shutil.move(folder / "kept.npz", folder / "policy.npz")
    imagine.main(args)
    assert "left out" not in capsys.readouterr().out
    (folder / "checkpoint.pt").unlink()
    imagine.main(args)
    assert "Predicted values are left out" in capsys.readouterr().out
    for name in ("trajectories.png", "parting.png"):
        assert_is_a_picture(folder / "imagine" / name)


@pytest.mark.parametrize("env_id", ["hopper-mini-v2", "pendulum-mini"])
def test_simulator_goes_on_from_a_dataset_row(env_id):
    """Set to a row's observation, the simulator answers the row's action with the row's next observation and reward."""
    env = rambo_continuous.make_env(env_id)
    data = rambo_continuous.read_hdf5(rambo_continuous.find_dataset(env_id, None))
    slow = np.flatnonzero(np.abs(data["observations"]).max(1) < 9.9)  # a clipped velocity does not tell the true one
    for i in slow[:: len(slow) // 20]:
        env.reset(seed=0)
        imagine.set_state(env, data["observations"][i])
        observation, reward, terminated, _, _ = env.unwrapped.step(data["actions"][i])
        np.testing.assert_allclose(observation, data["next_observations"][i], atol=2e-3)
        np.testing.assert_allclose(reward, data["rewards"][i], atol=2e-2)
        assert terminated == data["terminals"][i]


def test_unknown_simulator():
    env = rambo_continuous.make_env("MountainCarContinuous-v0")
    with pytest.raises(rambo_continuous.InputError, match="cannot be told from its observation"):
        imagine.set_state(env, np.zeros(2))


@torch.no_grad()
def test_same_noise_and_what_follows_a_fall(runs):
    """A model step is that of the row's elite with the given noise; a fallen row stays where it is and earns nothing."""
    saved = imagine.load_run(runs("hopper-mini-v2"))
    dataset, generator = saved.dataset, torch.Generator().manual_seed(0)
    starts = torch.as_tensor(dataset.rows)[torch.randint(len(dataset.rows), (20,), generator=generator), : dataset.obs_dim]
    noise = torch.randn(30, 20, dataset.action_dim + dataset.obs_dim + 1, generator=generator)
    model = saved.models["pretrained model"]
    worlds = imagine.imagine(saved, model, starts, noise), imagine.simulate(saved, starts, noise)
    assert torch.equal(imagine.imagine(saved, model, starts, noise).observations, worlds[0].observations)
    rule = rambo_continuous.termination_rule(saved.env)
    for world in worlds:
        assert torch.equal(world.observations[0], starts)
        assert world.fallen[-1].any(), "the test is of use only if some fall"
        observations = world.observations * torch.tensor(dataset.obs_std) + torch.tensor(dataset.obs_mean)
        np.testing.assert_array_equal(rule(observations[1:]), world.fallen[1:])
        for t, i in torch.nonzero(world.fallen[:-1]).tolist():
            assert torch.equal(world.observations[t + 1, i], world.observations[t, i])
            assert world.rewards[t, i] == 0 and world.fallen[t + 1, i]

    actions, _ = rambo_continuous.sample_action(saved.agent.actor, starts, noise[0, :, : dataset.action_dim])
    members = torch.arange(saved.args.num_elites).repeat_interleave(20 // saved.args.num_elites)
    pair = (x.expand(saved.args.num_elites, -1, -1) for x in (starts, actions))
    mean, log_var = (x[members, torch.arange(20)] for x in model(*pair))
    sample = mean + torch.exp(0.5 * log_var) * noise[0, :, dataset.action_dim :]
    torch.testing.assert_close(worlds[0].observations[1], starts + sample[:, :-1])
    torch.testing.assert_close(worlds[0].rewards[0], sample[:, -1])


def test_nearest_distances():
    generator = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(150, 3, generator=generator), torch.randn(400, 3, generator=generator)
    brute_force = (queries[:, None] - rows).norm(dim=2)
    np.testing.assert_allclose(imagine.nearest_distances(queries, rows), brute_force.min(1).values, rtol=1e-5)
    own = torch.arange(150) * 2
    others = (rows[own][:, None] - rows).norm(dim=2)
    others[torch.arange(150), own] = torch.inf
    np.testing.assert_allclose(imagine.nearest_distances(rows[own], rows, own), others.min(1).values, rtol=1e-5)


@torch.no_grad()
def test_comparison_of_models(runs):
    """A model that predicts one standard deviation less reward: the known difference and change in value."""
    saved = imagine.load_run(runs("pendulum-mini"))
    rows = rambo_continuous.split_rows(torch.as_tensor(saved.dataset.rows), saved.dataset.obs_dim)
    std = rows.rewards.std()
    changed = saved.models["adversarial model"]
    changed.load_state_dict(saved.models["pretrained model"].state_dict())
    changed.layers[-1].bias[:, :, saved.dataset.obs_dim] -= std
    parting = imagine.compare_models(saved, rows.observations[:40], rows.actions[:40], torch.arange(40))
    np.testing.assert_allclose(parting.differences, (1 / (saved.dataset.obs_dim + 1)) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(parting.value_changes, -std, rtol=1e-3)
    assert (parting.distances > 0).all()


def test_probe(runs, copy_of):
    """Two copies of the pretrained model that differ by the adversary alone; without the critic there is none."""
    saved = imagine.load_run(runs("pendulum-mini"), probing=True)
    (pretrained,) = saved.models.values()
    (_, without), (_, nothing) = imagine.probe(saved, 0.0, 3, seed=1).items()
    (_, again), (name, probed) = imagine.probe(saved, 0.3, 3, seed=1).items()
    assert name == "adversarial model (λ = 0.3)"
    models = pretrained, without, nothing, again, probed
    for before, a, b, c, d in zip(*(model.layers.parameters() for model in models), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
        assert not torch.equal(a, before) and not torch.equal(a, d)

    folder = copy_of("pendulum-mini")
    saved = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(saved | {"adv_weight": 0.0}))
    (folder / "dynamics.npz").unlink()
    args = imagine.Args(folder, probe_weight=0.3, probe_updates=2, starts=5, horizon=3, points=10)
    imagine.main(args)  # a run with lambda = 0 can be probed
    assert_is_a_picture(folder / "imagine" / "parting.png")
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(rambo_continuous.InputError, match="--probe-weight needs the critic"):
        imagine.main(args)


def test_refusals(copy_of, tmp_path):
    assert_refused(run_as_main(SCRIPT, tmp_path / "nowhere"), "nowhere is not a run folder")
    folder = copy_of("pendulum-mini")
    args = imagine.Args(folder)
    refusals = {
        "--horizon must be positive": replace(args, horizon=0),
        "--probe-weight must be positive": replace(args, probe_weight=0.0),
        "--output .* cannot be written": replace(args, output=folder / "args.json"),
    }
    for message, wrong in refusals.items():
        with pytest.raises(rambo_continuous.InputError, match=message):
            imagine.main(wrong)
    saved = json.loads((folder / "args.json").read_text())
    for message, change in {"used no model": {"real_ratio": 1.0}, "lambda = 0": {"adv_weight": 0.0}}.items():
        (folder / "args.json").write_text(json.dumps(saved | change))
        with pytest.raises(rambo_continuous.InputError, match=message):
            imagine.main(args)
    (folder / "args.json").write_text(json.dumps(saved | {"env_id": "hopper-mini-v2"}))
    with pytest.raises(rambo_continuous.InputError, match="policy.npz was trained on another dataset"):
        imagine.main(args)
    (folder / "args.json").write_text(json.dumps(saved))
    shutil.copy(folder / "dynamics.npz", folder / "kept.npz")
    shutil.copy(folder / "policy.npz", folder / "dynamics.npz")
    with pytest.raises(rambo_continuous.InputError, match="^.*dynamics.npz does not hold what this run needs"):
        imagine.main(args)
    shutil.move(folder / "kept.npz", folder / "dynamics.npz")
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(rambo_continuous.InputError, match="its checkpoint cannot be read"):
        imagine.main(args)
    (folder / "dynamics.npz").unlink()
    with pytest.raises(rambo_continuous.InputError, match="lacks dynamics.npz: needs a finished run with --save-model"):
        imagine.main(args)
