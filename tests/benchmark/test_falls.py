"""benchmark/falls.py: what it measures on a tiny run of each script, its table, its picture, refusals."""

from contextlib import closing

import falls
import numpy as np
import pytest
from conftest import HOPPER, ROOT, TINY, read_csv, run_as_main, run_here, run_script

import rambo_continuous
import rambo_continuous_jax

SCRIPT = ROOT / "benchmark" / "falls.py"


def row(episode: int, step: int, terminated: int, value: float, following: float) -> dict[str, str]:
    numbers = episode, step, terminated, 3.0, value, following, 0.25, 0.5, 0.3
    return dict(zip(falls.COLUMNS, map(str, numbers), strict=True))


def test_a_checkpoint_of_either_script(rambo, tmp_path, monkeypatch):
    """The values are the critic's, the returns those of the evaluation's episodes, the picture that of the CSV."""
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, *HOPPER, "--no-cuda")
    falls.main(falls.Args(folder))
    run, rows = falls.load_run(folder, None), read_csv(folder / "falls.csv")
    assert list(rows[0]) == falls.COLUMNS
    episodes = falls.episodes_of(rows)
    assert len(episodes) == run.args.eval_episodes == 2 and run.iteration == 2
    evaluated = [float(x) for x in read_csv(folder / "evaluations.csv")[-1]["episodic_returns"].split()]
    assert np.allclose([episode["reward"].sum() for episode in episodes], evaluated, rtol=1e-3)
    for episode, played in zip(episodes, falls.play(run), strict=True):
        assert episode["terminated"].all() and len(episode["step"]) == len(played.rewards) < 1000
        states = (played.observations - run.dataset.obs_mean) / run.dataset.obs_std
        values = np.min(run.agent.critic(states, run.agent.actor.mode(states)), 0)
        assert np.allclose(episode["value"], values, rtol=1e-3, atol=1e-3)
        discounted = (run.args.gamma ** np.arange(len(played.rewards)) * played.rewards).sum()
        assert episode["return_to_go"][0] == pytest.approx(discounted, rel=1e-3)
        assert episode["return_to_go"][-1] == pytest.approx(played.rewards[-1], rel=1e-3)
        assert (episode["distance"] > 0).all()

    states = np.repeat(run.dataset.rows[:1, : run.dataset.obs_dim], 2, 0)
    states[1, 1] = (0.5 - run.dataset.obs_mean[1]) / run.dataset.obs_std[1]  # an episode ends where Hopper leans by 0.2
    upright, leaning = falls.model_falls(run, states)
    assert leaning > 0.9 and 0 <= upright <= leaning

    again = tmp_path / "again.png"
    falls.main(falls.Args(folder / "falls.csv", figure=again))
    assert again.read_bytes() == (folder / "falls.png").read_bytes()


def test_episodes_that_begin_in_the_dataset(tmp_path, monkeypatch):
    """A state set from an observation goes on as the dataset does; each stage has its episodes; the table from the CSV."""
    data = rambo_continuous.read_hdf5(rambo_continuous.find_dataset("hopper-mini-v2", None))
    with closing(rambo_continuous.make_env("hopper-mini-v2")) as env:
        for i in np.flatnonzero(abs(data["observations"]).max(1) < 5)[:500:50]:
            falls.set_state(env, data["observations"][i])
            following = env.step(data["actions"][i])[0]
            assert np.allclose(following, data["next_observations"][i], atol=1e-3)

    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo_continuous_jax, *HOPPER, "--no-cuda")
    first_states = []
    monkeypatch.setattr(falls, "set_state", lambda env, state: (first_states.append(state), env.reset(seed=0)))
    falls.main(falls.Args(folder, starts=3))
    rows = read_csv(folder / "starts.csv")
    assert [int(row["from_step"]) for row in rows] == [-1] * 2 + [step for step in falls.STAGES[:-1] for _ in range(3)]
    evaluated = [float(x) for x in read_csv(folder / "evaluations.csv")[-1]["episodic_returns"].split()]
    assert np.allclose([float(row["return"]) for row in rows[:2]], evaluated, rtol=1e-2)
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    for row, state in zip(rows[2:], first_states, strict=True):
        (i,) = np.flatnonzero((data["observations"] == state).all(1))
        step = i - max([0, *(ends[ends < i] + 1)])  # in its episode
        assert int(row["from_step"]) <= step <= int(row["to_step"])
    lasting = [dict(zip(falls.START_COLUMNS, ("100", "999999", steps, "1"), strict=True)) for steps in ("12", "400", "1000")]
    text = falls.starts_table([dict(lasting[0], from_step="-1", to_step="-1"), *lasting])
    assert text.endswith("| in the environment | 1 | 12 | 100% | 0% |\n| from step 100 on | 3 | 400 | 33% | 33% |")
    with pytest.raises(falls.InputError, match="--starts: the observations of pendulum-mini"):
        falls.main(falls.Args(run_here(rambo_continuous_jax, *TINY, "--env-id", "pendulum-mini"), starts=3))


def test_the_table_counts_the_falls_that_the_critic_does_not_see():
    blind = [row(0, step, 1, 300.0, 9.0 - 3 * step) for step in range(3)]
    seen = [row(1, step, 1, 10.0, 9.0 - 3 * step) for step in range(3)]
    standing = [row(2, step, 0, 300.0, 300.0) for step in range(5)]
    text = falls.summary(blind + seen + standing)
    assert "2 of 3 episodes end in a fall, after 3 steps (median). In 1 of them" in text
    assert text.endswith("| 1 | 155 | 3 | 25% | 0.50 |")
    assert falls.summary(standing) == "None of 1 episodes ends in a fall."
    # a body that cannot fall: of two episodes of 200 steps one is stuck, at a reward of 0.2, from its step 100 on
    moving, stuck = ([row(i, step, 0, 300.0, 600.0) for step in range(200)] for i in range(2))
    for stuck_row in stuck[100:]:
        stuck_row.update(reward="0.2", value="200", return_to_go="-40", distance="0.7")
    text = falls.summary(moving + stuck)
    assert text.startswith("None of 2 episodes ends in a fall. 1 are stuck in the end.")
    moves, is_stuck = text.splitlines()[-2:]
    assert moves == "| moves | 75% | 3.0 | 300 | 600 | 0.50 |"
    assert is_stuck == "| is stuck | 25% | 0.2 | 200 | -40 | 0.70 |"
    # after a time limit the critic's value stands for what would follow
    assert falls.returns_to_go(np.array([1.0, 2.0]), 4.0, 0.5).tolist() == [3.0, 4.0]


def test_what_falls_cost():
    """Evaluations after iteration 100 by their score; a log without any is refused."""
    keys = "iteration", "charts/normalized_score", "charts/episodic_length", "charts/discounted_return"
    numbers = [(100, 25, 1, 1), (110, 25, 300, 250), (120, 29, 302, 260), (121, "", "", ""), (130, 99, 1000, 270)]
    rows = [dict(zip(keys, map(str, row), strict=True)) for row in [*numbers, (140, -5, 9, 4), (150, "nan", 1, 1)]]
    assert falls.score_table(rows, 100).splitlines()[2:] == [
        "| below 20 | 1 | 9 | 4 | 4 to 4 |",
        "| 20 to 30 | 2 | 301 | 255 | 251 to 259 |",
        "| above 85 | 1 | 1000 | 270 | 270 to 270 |",
    ]
    with pytest.raises(falls.InputError, match="after iteration 140: see --after"):
        falls.score_table(rows, 140)


def test_the_command_line_and_what_it_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo_continuous, *HOPPER, "--no-cuda")
    result = run_script(SCRIPT, folder)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 episodes end in a fall" in result.stdout
    (folder / "checkpoint.pt").unlink()
    result = run_as_main(SCRIPT, folder)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ") and "no run folder with a checkpoint" in result.stderr
    (folder / "falls.csv").write_text(",".join(falls.COLUMNS) + "\n")
    with pytest.raises(falls.InputError, match="holds no episode"):
        falls.main(falls.Args(folder / "falls.csv"))
    (folder / "falls.csv").write_text("a,b\n1,2\n")
    with pytest.raises(falls.InputError, match="neither a file of this program"):
        falls.main(falls.Args(folder / "falls.csv"))
    with pytest.raises(falls.InputError, match="that run has no model"):
        falls.main(falls.Args(run_here(rambo_continuous, *HOPPER, "--real-ratio", "1")))
