"""The bench of verdicts: systems of known kind, from several seeds, and what the census calls them.

    python benchmarks/verdicts.py                # every case; prints a line for each and the confusion table
    python benchmarks/verdicts.py --case lorenz  # cases whose name contains a word
    python benchmarks/verdicts.py --quiet        # the confusion table alone

A verdict is right, undetermined, or wrong; one that is wrong makes the exit code 1.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch
from verdict_cases import CASES, Case

from dyneq.dynamics.verdict import Verdict
from dyneq.probes.registry import run_probe

#: The kinds as rows and columns of the table, mildest first.
KINDS = [v.value for v in sorted(Verdict, key=lambda v: v.severity)]


@dataclass(frozen=True)
class Outcome:
    """What one sample of a case was called."""

    case: str
    seed: int
    sample: int
    right: frozenset[str]
    verdict: str
    confidence: str

    @property
    def wrong(self) -> bool:
        """Whether it was called something it is not."""
        return self.verdict not in self.right and self.verdict != Verdict.UNDETERMINED.value


def judge(case: Case, seed: int) -> list[Outcome]:
    """Return what every sample of a case is called."""
    ds = run_probe("census", case.make(seed), depth=case.depth, seed=seed)
    right = case.right(seed, ds.sizes["sample"])
    return [
        Outcome(case.name, seed, i, right[i], str(ds["verdict"].values[i]), str(ds["confidence"].values[i]))
        for i in range(ds.sizes["sample"])
    ]


def confusion(outcomes: list[Outcome]) -> str:
    """Return the table: a row for each known kind, a column for each verdict, in samples."""
    counts = Counter((row_of(o), o.verdict) for o in outcomes)
    rows = sorted({row for row, _ in counts}, key=lambda r: KINDS.index(r.split(" or ")[0]))
    columns = [k for k in KINDS if any(v == k for _, v in counts)]
    width = max(len(r) for r in rows)
    lines = ["| " + "known to be".ljust(width) + " | " + " | ".join(columns) + " |"]
    lines.append("|" + "-" * (width + 2) + "|" + "|".join("-" * (len(c) + 2) for c in columns) + "|")
    for row in rows:
        cells = [str(counts.get((row, c), 0) or "").rjust(len(c)) for c in columns]
        lines.append("| " + row.ljust(width) + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row_of(outcome: Outcome) -> str:
    """Return the row of the table: where several kinds are right, the one it was called if that is one of them."""
    if outcome.verdict in outcome.right:
        return outcome.verdict
    return min(outcome.right, key=KINDS.index)


def main() -> int:
    """Run the bench and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--quiet", action="store_true", help="the confusion table alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    chosen = [c for c in CASES if asked.case.lower() in c.name.lower()]
    for case in chosen:
        begun = time.perf_counter()
        found = [o for seed in case.seeds for o in judge(case, seed)]
        outcomes += found
        if not asked.quiet:
            counts = ", ".join(f"{n} {v}" for v, n in Counter(o.verdict for o in found).most_common())
            mark = "WRONG " if any(o.wrong for o in found) else ""
            print(f"{case.name}: {mark}{counts}  ({time.perf_counter() - begun:.0f} s; {case.why})", flush=True)
    wrong = [o for o in outcomes if o.wrong]
    open_ = [o for o in outcomes if o.verdict == Verdict.UNDETERMINED.value]
    print(f"\n{confusion(outcomes)}\n")
    print(
        f"{len(chosen)} systems, {len(outcomes)} samples: {len(outcomes) - len(wrong) - len(open_)} right, "
        f"{len(open_)} undetermined, {len(wrong)} wrong"
    )
    for o in wrong:
        known = " or ".join(sorted(o.right))
        print(f"  wrong: {o.case}, seed {o.seed}, sample {o.sample}: {o.verdict} ({o.confidence}), known to be {known}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
