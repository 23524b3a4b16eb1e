"""Train the networks of the method `joint` by simulating the quantizers.

``python -m tests.training.prepare DATA`` writes weights to train on and to look at, then
``python -m tests.training.joint DATA OUT --sets Q5_K+Q4_K+Q2_K --seconds 500`` trains, on a GPU if
there is one. See docs/joint.md. It needs torch and what `recover` needs.
"""

import argparse
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recover.estimators._joint_torch import infer
from recover.training.simulate import (
    N_SUPERBLOCKS,
    Batch,
    draw,
    draw_importance,
    pool_from,
    simulate,
)

HELD = ("llama", "held")
N_HELD = 2048
FAR = 5.99  # deviations: bounds are told up to 6
AHEAD = 24  # batches that are drawn while others are learned from
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batches(
    pool: np.ndarray[Any, Any], sets: Sequence[Sequence[str]], size: int, seed: int, first: int
) -> Iterator[list[Any]]:
    """Batch after batch, in an order that does not depend on the number of threads."""

    def make(i: int) -> list[Any]:
        rng = np.random.default_rng((seed, i))
        x, importance = draw(rng, pool, size), draw_importance(rng)
        batch = tensors_of(simulate(x, sets[i % len(sets)], importance))
        return [each.pin_memory() for each in batch] if DEVICE == "cuda" else batch

    waiting: deque[Future[list[Any]]] = deque()
    workers = max(1, min(15, (os.cpu_count() or 2) - 1))
    with ThreadPoolExecutor(workers) as threads:
        while True:
            while len(waiting) < AHEAD:
                waiting.append(threads.submit(make, first))
                first += 1
            yield waiting.popleft().result()


def compile_type(name: str) -> None:
    """Have the kernels of a type compiled, and kept on the disk."""
    ones = np.ones((16, 256), np.float32)
    simulate(ones, [name], ones)


class Learner:
    """A network that learns."""

    def __init__(self, types: Sequence[str], shape: str, rate: float) -> None:
        width, n_rounds = map(int, shape.split("x"))
        self.name = "+".join(types) + " " + shape
        self.net = Network(types, width, n_rounds).to(DEVICE)
        self.rate = rate * 2e-3 * (64 / width) ** 0.5
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=self.rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.mean = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.body = torch.compile(self.net.body) if DEVICE == "cuda" else self.net.body
        self.n_steps = 0

    def step(self, batch: list[Any], progress: float) -> None:
        by_weight, by_group, target, deviation = batch[:4]
        slope = 0.5 * (1 + np.cos(np.pi * min(1.0, progress))) + 0.003
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.n_steps + 1) / 200) * slope
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            correction, factor = self.body(*self.net.head(by_weight, by_group))
        square = (correction - target).clamp(-4, 4).square()
        own = deviation.square()
        weight = (own / (own.mean(1, keepdim=True) + 1e-30)).clamp(max=8)
        known = (deviation > 0).float()
        claimed = known * (square.detach() / factor + factor.log())
        loss = (weight * square).mean() + 0.05 * claimed.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.n_steps += 1
        if self.n_steps % 10 == 0:
            share = 1 - min(0.99, self.n_steps / (self.n_steps + 100))
            for name, value in self.net.state_dict().items():
                self.mean[name].lerp_(value, share)

    def look(self, batch: list[Any]) -> tuple[float, float, float]:
        """Errors of the posterior and of the network, and what the latter claims.

        Over the finest input's error, and over the measured one.
        """
        live = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(self.mean)
        before = after = claimed = alone = 0.0
        with torch.no_grad():
            for i in range(0, len(batch[0]), 512):
                by_weight, by_group, target, deviation, first = (
                    each[i : i + 512] for each in batch
                )
                correction, factor = self.net(by_weight.float(), by_group.float())
                below, above = (by_weight[:, :, j].reshape(-1, 256).float() * 3 for j in (0, 1))
                lower = torch.where(below < FAR, -below, -torch.inf)
                upper = torch.where(above < FAR, above, torch.inf)
                correction = torch.minimum(torch.maximum(correction, lower), upper)
                square = deviation.square()
                before += (square * target.square()).sum().item()
                after += (square * (correction - target).square()).sum().item()
                claimed += (square * factor).sum().item()
                alone += first.sum().item()
        self.net.load_state_dict(live)
        return before / alone, after / alone, claimed / after

    def record(self) -> dict[str, Any]:
        return {
            "types": self.net.types,
            "shape": (self.net.width, self.net.n_rounds),
            "mean": {k: v.cpu() for k, v in self.mean.items()},
            "live": {k: v.cpu() for k, v in self.net.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "n_steps": self.n_steps,
        }

    def resume(self, record: dict[str, Any]) -> None:
        self.net.load_state_dict(record["live"])
        self.optimizer.load_state_dict(record["optimizer"])
        self.n_steps = record["n_steps"]
        self.mean = {k: v.to(DEVICE) for k, v in record["mean"].items()}


def tensors_of(batch: Batch) -> list[Any]:
    """Arrays of a batch as tensors."""
    halves = [torch.from_numpy(each.view(np.float16)) for each in batch[:2]]
    return [*halves, *(torch.from_numpy(each) for each in batch[2:])]


def to_device(tensors: list[Any]) -> list[Any]:
    """Tensors of a batch, where they are learned from."""
    return [each.to(DEVICE, non_blocking=True) for each in tensors]


def train(args: argparse.Namespace) -> None:
    start = time.time()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # each network compiles the same code
    sets = [each.split("+") for each in args.sets.split(",")]
    types = sorted({name for each in sets for name in each})
    with ProcessPoolExecutor(max(1, min(len(types), (os.cpu_count() or 2) // 2))) as processes:
        list(processes.map(compile_type, types))
    print(f"kernels after {time.time() - start:.0f} s", flush=True)
    pool = pool_from(args.data / "train.npy")
    n_held = args.held
    held_weights = {name: pool_from(args.data / f"{name}.npy")[:n_held] for name in HELD}
    importance = draw_importance(np.random.default_rng(args.seed))
    held = {
        (name, i): to_device(tensors_of(simulate(x, each, importance)))
        for name, x in held_weights.items()
        for i, each in enumerate(sets)
    }
    known = torch.load(args.resume, DEVICE, weights_only=False) if args.resume else {}
    learners: list[tuple[int, Learner]] = []
    for shape in args.widths.split(","):
        for i, each in enumerate(sets):
            learner = Learner(each, shape, args.rate)
            if learner.name in known:
                learner.resume(known[learner.name])
            elif others := [r for r in known.values() if "{}x{}".format(*r["shape"]) == shape]:
                plain = tuple(name.rstrip("*") for name in each)
                nearest = next((r for r in others if r["types"] == plain), others[0])
                other = Network(nearest["types"], *nearest["shape"]).to(DEVICE)
                other.load_state_dict(nearest["mean"])
                learner.net.begin_as(other)
                learner.mean = {k: v.detach().clone() for k, v in learner.net.state_dict().items()}
            learners.append((i, learner))

    def look(step: int) -> None:
        for i, learner in learners:
            for name in HELD:
                before, after, claims = learner.look(held[name, i])
                print(
                    f"{time.time() - start:5.0f} s {step:6d} {learner.name} {name}: "
                    f"{before:.4f} -> {after:.4f} ({after / before - 1:+.2%}), "
                    f"claims {claims:.3f}",
                    flush=True,
                )
        torch.save({each.name: each.record() for _, each in learners}, args.out / "nets.pt")

    warm, step = 0.0, 0
    marks = iter([100 * len(sets), *range(6000, 10**7, 6000)])
    mark = next(marks)
    for batch in batches(pool, sets, args.size, args.seed, args.first):
        tensors = to_device(batch)
        progress = (time.time() - warm) / args.seconds if warm else 0.0
        if warm and progress >= 1:
            break
        for i, learner in learners:
            if i == step % len(sets):
                learner.step(tensors, progress)
        step += 1
        if step == 10 * len(sets):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            warm = time.time()
            print(f"begins after {warm - start:.0f} s", flush=True)
        if step == mark:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            print(f"{step / (time.time() - warm):.1f} steps a second", flush=True)
            mark = next(marks)
            look(step)
    look(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder of nets.pt")
    parser.add_argument("--sets", default="Q5_K+Q4_K+Q2_K")
    parser.add_argument("--widths", default="48x3", help="width x rounds, several with commas")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first batch")
    parser.add_argument("--size", type=int, default=N_SUPERBLOCKS, help="superblocks in a batch")
    parser.add_argument("--held", type=int, default=N_HELD, help="superblocks to look at")
    parser.add_argument("--resume", type=Path, help="networks to go on with, or to begin from")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
