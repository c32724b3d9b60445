"""rambo_continuous.py without the normalisation of the advantage in Eq. 5; same flags, give an --exp-name of its own.

The weight of the adversary then grows with the spread of the advantages (`model/advantage_std` in metrics.csv).
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous
from rambo_continuous import Diverged, InputError, main, parse_args


def adversarial_loss(log_prob: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """mean(A log p) of log-probabilities [B] and advantages [B]; only the former pass gradients."""
    return (advantage.detach() * log_prob).mean()


if __name__ == "__main__":
    rambo_continuous.adversarial_loss = adversarial_loss
    try:
        main(parse_args())
    except (InputError, Diverged) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(3 if isinstance(problem, Diverged) else 1)
