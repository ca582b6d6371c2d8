"""What a run is told before it begins: the task, where it is not the usual one, and what it will never come to."""

from dyneq.systems.checkpoint import block_of_kind
from dyneq.train.recipe import Recipe


def task(recipe: Recipe) -> str:
    """Return what a block of the recipe learns: the next token, or, where it is not causal, masked ones.

    Args:
        recipe: A resolved recipe.
    """
    return "next token" if block_of_kind(recipe.block["kind"]).causal else "masked token"


def before(recipe: Recipe) -> list[str]:
    """Return the sentences a run begins with.

    Args:
        recipe: A resolved recipe.
    """
    kind, found = recipe.block["kind"], idle(recipe)
    if task(recipe) == "next token":
        return found
    return [
        f"the block {kind} is not causal, so that it can be no causal language model: it learns to complete masked "
        "tokens, and its losses are not those of next tokens",
        *found,
    ]


def idle(recipe: Recipe) -> list[str]:
    """Return a sentence for everything that begins after a run's last update.

    Args:
        recipe: A resolved recipe.
    """
    steps = recipe.run.steps
    late = [s for s in recipe.switch if s.at is not None and s.at > steps]
    found = [f"the gradient {switch.gradient['name']}, due from update {switch.at} on" for switch in late]
    for name, options in recipe.penalty.items():
        if options.get("start", 0) >= steps:
            found.append(f"the penalty {name}, which rests for start={options['start']} updates")
    if recipe.stability.prewarm >= steps:
        found.append(f"the task's own gradient after stability.prewarm={recipe.stability.prewarm} updates")
    elif recipe.optimizer.warmup > steps - recipe.stability.prewarm:
        found.append(f"the full learning rate after optimizer.warmup={recipe.optimizer.warmup} updates")
    return [
        f"run.steps={steps} ends the run before {what}; ask for more steps if it should take effect" for what in found
    ]
