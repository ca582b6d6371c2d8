"""What a recipe asks for that a run of its length will never come to."""

from dyneq.train.recipe import Recipe


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
