"""Which way of doing the ensemble's products is fastest on this machine?

    python benchmark/products.py

Times forward and backward pass of five dynamics models on 512 rows each, the adversarial update's network, in hopper's
dimensions, in torch and through XLA:

    batched   one batched product a layer, what the scripts do
    layers    a loop over the members in every layer, one plain product each
    members   a loop over the members, each a network of its own
    halves    one batched product a layer over twice the members: 256 imagined rows apart from 256 of the log, so that
              the number of products divides among the threads

The ways take turns; figures are medians over the rounds, ratios medians of the ratios to `batched` within a round.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed import describe_machine, figure, import_jax, machine, summarize, table, take_turns

WAYS = ("batched", "layers", "members", "halves")


@dataclass
class Args:
    repeats: int = 7
    """rounds in which the ways take turns"""
    updates: int = 30
    """forward and backward passes in each timed block"""
    members: int = 5
    rows: int = 512
    widths: tuple[int, ...] = (14, 200, 200, 200, 200, 24)
    """of the layers: hopper's inputs, four hidden layers, mean and log-variance of its outputs"""


def network(way: str, weights: list, biases: list, x, silu, stack):
    """Outputs [E, B, D] of inputs [E, B, I] for weights [E, in, out] and biases [E, 1, out], in either library."""
    members, last = len(x), len(weights) - 1
    if way == "members":
        outputs = []
        for e in range(members):
            y = x[e]
            for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
                y = y @ w[e] + b[e]
                y = silu(y) if i < last else y
            outputs.append(y)
        return stack(outputs)
    if way == "halves":
        x = x.reshape(members, 2, -1, x.shape[-1]).swapaxes(0, 1)  # the product broadcasts the weights over the halves
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = stack([x[e] @ w[e] + b[e] for e in range(members)]) if way == "layers" else x @ w + b
        x = silu(x) if i < last else x
    return x


def torch_block(way: str, weights: list, biases: list, x: np.ndarray, updates: int):
    parameters = [torch.nn.Parameter(torch.as_tensor(p)) for p in (*weights, *biases)]
    x, half = torch.as_tensor(x), len(weights)

    def block() -> None:
        for _ in range(updates):
            for parameter in parameters:
                parameter.grad = None
            network(way, parameters[:half], parameters[half:], x, F.silu, torch.stack).square().mean().backward()

    return block


def xla_block(way: str, weights: list, biases: list, x: np.ndarray, updates: int):
    jax = import_jax("cpu")
    parameters, x = jax.tree.map(jax.numpy.asarray, ((weights, biases), x))

    def loss(parameters):
        return (network(way, *parameters, x, jax.nn.silu, jax.numpy.stack) ** 2).mean()

    def step(parameters, _):  # each pass depends on the one before, so that none is left out
        return jax.tree.map(lambda p, g: p - 1e-6 * g, parameters, jax.grad(loss)(parameters)), None

    run = jax.jit(lambda parameters: jax.lax.scan(step, parameters, None, updates)[0])
    return lambda: jax.block_until_ready(run(parameters))


def main(args: Args) -> None:
    rng = np.random.default_rng(1)
    pairs = list(zip(args.widths, args.widths[1:], strict=False))
    weights = [rng.standard_normal((args.members, *pair), np.float32) / pair[0] ** 0.5 for pair in pairs]
    biases = [np.zeros((args.members, 1, pair[1]), np.float32) for pair in pairs]
    x = rng.standard_normal((args.members, args.rows, args.widths[0]), np.float32)
    where = describe_machine(machine("cpu", ["torch", "jax-1"], []))
    makers = {"torch": torch_block, "XLA": xla_block}
    blocks = {(library, way): make(way, weights, biases, x, args.updates) for library, make in makers.items() for way in WAYS}
    for block in blocks.values():
        block()  # warm-up, compilation
    times = take_turns(blocks, args.repeats)
    gflop = 2e-9 * args.members * args.rows * (3 * sum(a * b for a, b in pairs) - args.widths[0] * args.widths[1])
    rows = []
    for library, way in blocks:
        result = summarize(times[library, way], times[library, "batched"], count=args.updates)
        spread = f"{figure(1000 * result['low'])} to {figure(1000 * result['high'])}"
        speed = figure(gflop / result["seconds"])
        rows.append([library, way, figure(1000 * result["seconds"], " ms"), spread, figure(result["ratio"]), speed])
    print(f"{where}\n\n{table('library | way | time | lowest to highest | ratio to batched | GFLOP/s', rows)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
