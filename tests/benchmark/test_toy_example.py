"""benchmark/toy_example.py: maximum likelihood exploits the gap in the log, RAMBO does not, and stays accurate on the log."""

import numpy as np
import toy_example
from PIL import Image

import rambo_continuous

TOLERANCE = 0.1  # of the mean log-density of the logged rewards, in nats; that of the maximum likelihood model is about 0.85


def test_best_action_moves_back_to_the_data(script, tmp_path):
    """Half of the iterations of the README's figure are enough for the model; the policy needs the other half."""
    args = toy_example.Args(jax=script.stem.endswith("jax"), output=tmp_path / "toy.png", iterations=5)
    likelihood, rambo = toy_example.main(args)

    assert abs(likelihood.best_action) < toy_example.GAP, "maximum likelihood does not exploit the gap"
    promised = likelihood.model_mean.max()
    assert promised - toy_example.true_reward(likelihood.best_action) > 1, "nor is it deceived there"
    assert likelihood.policy_reward < 0.2, "its policy does not walk into the gap"

    actions, rewards = toy_example.sample_log(args.rows, args.seed)
    assert not (np.abs(actions) < 0.2).any() and (np.abs(actions) < toy_example.GAP).mean() < 0.005
    assert abs(rambo.best_action) > toy_example.GAP and np.abs(actions - rambo.best_action).min() < 0.01
    assert abs(rambo.model_mean.max() - toy_example.true_reward(rambo.best_action)) < 0.15
    in_the_gap = np.abs(toy_example.GRID) < toy_example.GAP / 2
    assert (rambo.model_mean[in_the_gap] < likelihood.model_mean[in_the_gap] - 0.1).all(), "no pessimism in the gap"
    assert rambo.policy_reward > likelihood.policy_reward + 0.2

    assert "OneStep" not in rambo_continuous.TERMINATION_RULES, "the rule of the example stays after it"

    assert abs(rambo.log_likelihood - likelihood.log_likelihood) < TOLERANCE
    picture = np.asarray(Image.open(args.output).convert("RGB"))
    assert args.output.stat().st_size < 300_000 and (picture.min(-1) < 200).mean() > 0.01
