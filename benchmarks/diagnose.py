"""What a census costs: force evaluations, and how its time compares with that of so many forces.

    python benchmarks/diagnose.py            # both sizes; about ten minutes on two cores
    python benchmarks/diagnose.py reference  # the packaged checkpoint only

`reference` is the packaged checkpoint `after` with its 64 samples; `big` has 512 channels, 16 heads, 256 tokens and 2
samples, random weights with a gain under which its relaxation settles slowly. Evaluations are counted in units of one
force on the whole batch. The floor is the time so many plain forces take, measured in the same run.
"""

import statistics
import sys
import time

import torch

import dyneq
from dyneq.dynamics.census import take_census
from dyneq.systems.protocol import System
from dyneq.systems.thick import ThickBlock, ThickConfig

#: Gain of the residual branches of the random block.
GAIN = 3.0


def big() -> System:
    """Return a random block of 262,144 dimensions that settles slowly."""
    config = ThickConfig(vocabulary=256, channels=512, heads=16, tokens=256)
    block = ThickBlock(config, torch.Generator().manual_seed(1)).requires_grad_(False)
    block.attn.wo.weight.mul_(GAIN)
    block.ffn.pj.weight.mul_(GAIN)
    return block.bind(torch.randint(0, 256, (2, 256), generator=torch.Generator().manual_seed(1)))


SYSTEMS = {"reference": lambda: dyneq.open_checkpoint("after").bind(), "big": big}


@torch.no_grad()
def force_seconds(system: System) -> float:
    """Return the median time of a force at the initial state."""
    z, seconds = system.initial_state(), []
    for _ in range(15):
        begun = time.perf_counter()
        system.force(z)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    """Run the benchmark and print its tables."""
    for name in sys.argv[1:] or list(SYSTEMS):
        system = SYSTEMS[name]()
        before = force_seconds(system)
        begun = time.perf_counter()
        census = take_census(system, generator=torch.Generator().manual_seed(0))
        seconds = time.perf_counter() - begun
        floor = statistics.mean([before, force_seconds(system)])
        verdicts = [j.verdict.value for j in census.judgements]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        cost = census.cost
        print(f"{name}, {list(system.initial_state().shape)}, {torch.get_num_threads()} threads: {counts}")
        print(f"  forces on the batch          {cost.forces:8.0f}")
        print(f"  products with the Jacobian   {cost.products:8.0f}")
        print(f"  forces on single tokens      {cost.tokens:8.0f}")
        print(f"  all together                 {cost.total:8.0f} force evaluations")
        print(f"  time over so many forces     {seconds / (cost.total * floor):8.2f}  ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
