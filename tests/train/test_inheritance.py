"""Inheritance, assignments and grids of recipes: what counts, what is dropped, and what is wrong by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyneq.errors import UsageError
from dyneq.probes.penalties.floss import FlossParams
from dyneq.train.arms import Axes, cells
from dyneq.train.recipe import load_recipe, packaged, resolve

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes recipes to files beside one another and returns the path of the last."""

    def make(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
        return tmp_path / f"{list(texts)[-1]}.toml"

    return make


BASE = """
[block]
channels = 8
heads = 2
tokens = 6
damping = 0.5
[gradient]
name = "aep"
beta = 0.1
[penalty.floss]
weight = 0.4
steps = 5
[penalty.resreg]
[optimizer]
lr = 1e-2
warmup = 7
"""


def test_a_recipe_changes_only_what_it_states(write: Write) -> None:
    recipe = load_recipe(write(base=BASE, own='inherits = "base.toml"\n[optimizer]\nlr = 1e-4\n[run]\nbatch = 2\n'))
    base = load_recipe(write(base=BASE))
    assert (recipe.optimizer.lr, recipe.optimizer.warmup, recipe.run.batch) == (1e-4, 7, 2)
    assert recipe.block == base.block
    assert recipe.penalty == base.penalty
    assert recipe.gradient == base.gradient
    assert recipe.gradient["beta"] == 0.1


@pytest.mark.parametrize(
    ("own", "floss"),
    [
        ("", {"weight": 0.4, "steps": 5}),
        ("[penalty]\nfloss = false\n", None),
        ("[penalty]\nfloss = true\n", {"weight": 0.4, "steps": 5}),
        ("[penalty]\nfloss = 0.7\n", {"weight": 0.7, "steps": 5}),
        ("[penalty.floss]\nmargin = 1.5\n", {"weight": 0.4, "steps": 5, "margin": 1.5}),
    ],
)
def test_an_inherited_penalty_is_kept_changed_or_dropped(
    write: Write, own: str, floss: dict[str, float] | None
) -> None:
    recipe = load_recipe(write(base=BASE, own=f'inherits = "base.toml"\n{own}'))
    assert "resreg" in recipe.penalty
    if floss is None:
        assert "floss" not in recipe.penalty
    else:
        assert {key: recipe.penalty["floss"][key] for key in floss} == floss


def test_set_does_to_a_penalty_what_inheritance_does(write: Write) -> None:
    path = write(base=BASE)
    assert load_recipe(path, ["penalty.floss=0.7"]).penalty["floss"]["steps"] == 5
    assert load_recipe(path, ["penalty.floss.margin=1.5"]).penalty["floss"]["weight"] == 0.4
    assert "floss" not in load_recipe(path, ["penalty.floss=false"]).penalty
    anew = load_recipe(path, ["penalty.floss=false", "penalty.floss.steps=9"]).penalty["floss"]
    assert anew["weight"] == FlossParams().weight != 0.4
    assert load_recipe(path, ["penalty.jacreg=0.5", "penalty.jacreg.vectors=3"]).penalty["jacreg"] == {
        **load_recipe(path, ["penalty.jacreg=true"]).penalty["jacreg"],
        **{"weight": 0.5, "vectors": 3},
    }


def test_another_estimator_drops_the_options_of_the_inherited_one(write: Write) -> None:
    other = load_recipe(write(base=BASE, own='inherits = "base.toml"\n[gradient]\nname = "adjoint"\n'))
    assert other.gradient["name"] == "adjoint"
    assert "beta" not in other.gradient
    same = load_recipe(write(base=BASE, own='inherits = "base.toml"\n[gradient]\nsides = 1\n'))
    assert (same.gradient["name"], same.gradient["beta"], same.gradient["sides"]) == ("aep", 0.1, 1)
    spec = BASE.replace('[gradient]\nname = "aep"\nbeta = 0.1\n', "")
    of_a_spec = load_recipe(
        write(base='gradient = "aep:beta=0.1"\n' + spec, own='inherits = "base.toml"\n[gradient]\nsides = 1\n')
    )
    assert (of_a_spec.gradient["name"], float(of_a_spec.gradient["beta"])) == ("aep", 0.1)


def test_another_kind_of_block_keeps_the_settings_it_has_too(write: Write) -> None:
    recipe = load_recipe(write(base=BASE, own='inherits = "base.toml"\n[block]\nkind = "mono"\n'))
    assert (recipe.block["kind"], recipe.block["channels"]) == ("mono", 8)
    assert "damping" not in recipe.block


@pytest.mark.parametrize(
    ("base", "own", "depth"),
    [
        ('[gradient]\nname = "bptt"\nsteps = 30\n', "[run]\nrelaxation = 50\n", 50),
        ("[run]\nrelaxation = 50\n", '[gradient]\nname = "bptt"\nsteps = 30\n', 30),
        ('[gradient]\nname = "bptt"\nsteps = 30\n', "", 30),
        ("[run]\nrelaxation = 50\n", '[gradient]\nname = "bptt"\n', 50),
        ('[gradient]\nname = "adjoint"\nt1 = 30\n', "[run]\nrelaxation = 50\n", 50),
    ],
)
def test_the_later_statement_of_the_depth_wins(write: Write, base: str, own: str, depth: int) -> None:
    block = "[block]\nchannels = 8\nheads = 2\ntokens = 6\n"
    recipe = load_recipe(write(base=block + base, own=f'inherits = "base.toml"\n{own}'))
    assert recipe.run.relaxation == depth
    assert depth in recipe.gradient.values()


def test_of_several_parents_the_later_ones_count_more(write: Write) -> None:
    path = write(
        base=BASE,
        wide="[block]\nchannels = 16\n[optimizer]\nlr = 5e-3\n",
        short="[run]\nsteps = 9\n[optimizer]\nlr = 6e-3\n",
        own='inherits = ["base.toml", "wide.toml", "short.toml"]\n[run]\nbatch = 3\n',
    )
    recipe = load_recipe(path)
    assert (recipe.block["channels"], recipe.block["damping"], recipe.optimizer.warmup) == (16, 0.5, 7)
    assert (recipe.optimizer.lr, recipe.run.steps, recipe.run.batch) == (6e-3, 9, 3)


def test_one_base_may_be_inherited_by_two_ways(write: Write) -> None:
    path = write(
        base=BASE,
        a='inherits = "base.toml"\n[run]\nsteps = 3\n',
        b='inherits = "base.toml"\n[run]\nbatch = 3\n',
        own='inherits = ["a.toml", "b.toml"]\n',
    )
    assert (load_recipe(path).run.steps, load_recipe(path).run.batch) == (3, 3)


def test_a_file_may_inherit_from_a_packaged_recipe(write: Write) -> None:
    recipe = load_recipe(write(own='inherits = ["floss", "s0"]\n'))
    assert recipe == load_recipe("floss-s0")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"own": 'inherits = "own.toml"\n'}, r"own.toml inherits itself \(.*own.toml inherits .*own.toml\); break"),
        (
            {"a": 'inherits = "own.toml"\n', "own": 'inherits = "a.toml"\n'},
            r"own.toml inherits itself \(.*own.toml inherits .*a.toml inherits .*own.toml\)",
        ),
        (
            {"b": 'inherits = "c.toml"\n', "c": 'inherits = "b.toml"\n', "own": 'inherits = "b.toml"\n'},
            "b.toml inherits",
        ),
        ({"own": "inherits = 3\n"}, "inherits 3, but 'inherits' takes a recipe's name or file"),
        ({"own": "inherits = [3]\n"}, "or a list of them"),
        ({"own": 'inherits = "flos"\n'}, "no packaged recipe 'flos'; did you mean 'floss'"),
        ({"own": 'inherit = "floss"\n'}, "no setting 'inherit'; did you mean 'inherits'"),
    ],
)
def test_wrong_inheritance_is_named(write: Write, texts: dict[str, str], message: str) -> None:
    texts = {name: f"{text}[block]\nchannels = 8\nheads = 2\ntokens = 6\n" for name, text in texts.items()}
    with pytest.raises(UsageError, match=message):
        load_recipe(write(**texts))


SWITCH = '[[switch]]\nat = 3\n[switch.gradient]\nname = "track"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[guad]\nenabled = true\n", "no setting 'guad'; did you mean 'guard'"),
        ("[data]\ncorpsu = 'kjv'\n", "no setting 'data.corpsu'; did you mean 'corpus'"),
        ("[optimizer]\nwarm_up = 3\n", "no setting 'optimizer.warm_up'; did you mean 'warmup'"),
        ("[stability]\nfuze = 0.1\n", "no setting 'stability.fuze'; did you mean 'fuse'"),
        ("[guard]\nenable = true\n", "no setting 'guard.enable'; did you mean 'enabled'"),
        ("[run]\nstep = 3\n", "no setting 'run.step'; did you mean 'steps'"),
        ("[penalty.flos]\n", "no penalty called 'flos'; did you mean 'floss'"),
        ("[penalty.floss]\nmargn = 1.0\n", "'floss' has no option 'margn'; did you mean 'margin'"),
        ("[penalty.jacreg]\nceilng = 8\n", "'jacreg' has no option 'ceilng'; did you mean 'ceiling'"),
        ("[penalty]\nfloss = 'much'\n", "'penalty.floss' to 'much', but it takes a table"),
        ("penalty = 3\n", "penalty is 3"),
        (SWITCH.replace("at = 3", "att = 3"), "no setting 'switch.0.att'; did you mean 'at'"),
        (SWITCH.replace("at = 3", 'metrc = "loss"'), "no setting 'switch.0.metrc'; did you mean 'metric'"),
        (SWITCH + "t22 = 4\n", "'track' has no option 't22'; did you mean 't2'"),
        (SWITCH.replace("track", "trak"), "'trak'; did you mean 'track'"),
        (SWITCH.replace("at = 3", ""), "a switch has either 'at', or 'metric'"),
        ('[switch]\nat = 3\ngradient = "track"\n', r"\[\[switch\]\]"),
        ("[gradient]\nname = 'adjoint'\nstpes = 4\n", "'adjoint' has no option 'stpes'; did you mean 'steps'"),
        ('[grid]\n"optimizer.lr" = [1e-3]\n', "several runs .*dyneq compare"),
        ('[arms.a]\n"optimizer.lr" = 1e-3\n', "several runs .*dyneq compare"),
    ],
)
def test_a_typo_names_the_nearest_known_at_every_level(write: Write, text: str, message: str) -> None:
    block = "[block]\nchannels = 8\nheads = 2\ntokens = 6\n"
    top, tables = (text, "") if not text.startswith("[") else ("", text)
    with pytest.raises(UsageError, match=message):
        load_recipe(write(own=f"{top}{block}{tables}"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("penalty.floss.margn=1.0", "no option 'margn'; did you mean 'margin'"),
        ("penalty.flos=true", "no penalty called 'flos'; did you mean 'floss'"),
        ("penalty.floss.margin.x=1", "section.key=value"),
        ("switch.at=3", "setting switch.at needs a table"),
        ("grid.lr=3", "'grid.lr' is no setting of one run"),
        ("run.steps=[1, 2]", "'run.steps' to"),
        ("run.seed=1\nrun.steps=2", "'run.seed' to"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe("warm-track", [assignment])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.floats(1e-300, 1e300)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "data.file": TEXT,
        "data.evaluation_seed": st.integers(0, 2**70),
        "optimizer.lr": POSITIVE,
        "optimizer.clip": POSITIVE,
        "optimizer.schedule": st.sampled_from(["constant", "cosine", "wsd"]),
        "optimizer.betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        "run.snapshots": st.lists(st.integers(0, 100)),
        "run.best": st.booleans(),
        "run.relaxation": st.integers(1, 500),
        "stability.gate": POSITIVE,
        "guard.enabled": st.booleans(),
        "block.damping": st.floats(-0.9, 1e6),
        "penalty.floss": st.one_of(st.booleans(), POSITIVE),
        "penalty.jacreg.weight": st.floats(0.1, 16.0),
        "penalty.spectral.until": st.integers(1, 10**9),
    },
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["default", "floss", "warm-track", "energy", "bp-s0", "specnorm-s0"]), changes=CHANGES)
def test_any_resolved_recipe_reads_back_equal(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    from dyneq.train.recipe_reading import inherited, put

    if name in ("energy", "bp-s0"):
        changes = {key: value for key, value in changes.items() if key != "block.damping"}
    values, _ = inherited(name, ())
    for key, value in {**changes, "run.steps": 100}.items():
        put(values, key, value)
    recipe = resolve(values)
    for key, value in changes.items():
        section, setting = key.split(".")[:2]
        if section in ("data", "optimizer", "stability", "guard"):
            found = getattr(getattr(recipe, section), setting)
            assert (list(found) if isinstance(found, tuple) else found) == value
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert resolve(recipe.to_plain()) == recipe


def test_a_grid_is_every_combination_and_the_learning_rate_is_its_own_axis(write: Write) -> None:
    path = write(
        base=BASE,
        own='inherits = "base.toml"\n[grid]\n"penalty.jacreg.ceiling" = [8, 16]\n"penalty.floss" = [false, 0.2]\n'
        '"optimizer.lr" = [1e-3, 2e-3]\n"block.gelu" = ["erf", "tanh"]\n',
    )
    found = cells([path], Axes(seeds=[4, 5], overrides=["run.batch=2"]))
    assert len(found) == 2 * 2 * 2 * 2 * 2
    assert found[0].arm == "own-ceiling8-no-floss-gelu-erf"
    assert found[0].name == "own-ceiling8-no-floss-gelu-erf-lr0.001-seed4"
    assert {cell.arm for cell in found} == {
        f"own-ceiling{c}-{f}-gelu-{g}" for c in (8, 16) for f in ("no-floss", "floss0.2") for g in ("erf", "tanh")
    }
    assert {cell.lr for cell in found} == {1e-3, 2e-3}
    assert {cell.seed for cell in found} == {4, 5}
    for cell in found:
        assert cell.recipe.penalty["jacreg"]["ceiling"] == (8 if "ceiling8" in cell.arm else 16)
        assert ("floss" in cell.recipe.penalty) == ("no-floss" not in cell.arm)
        assert cell.recipe.block["gelu"] in cell.arm
        assert cell.recipe.run.batch == 2
    other = cells([path], Axes(seeds=[0], lrs=[0.5]))
    assert {cell.lr for cell in other} == {0.5}


def test_labels_are_as_long_as_they_must_be(write: Write) -> None:
    path = write(own=BASE + '[grid]\n"penalty.floss.weight" = [1]\n"penalty.resreg.weight" = [2]\n"run.batch" = [3]\n')
    assert cells([path], Axes([0]))[0].arm == "own-floss.weight1-resreg.weight2-batch3"


def test_named_arms_and_a_grid_are_inherited_and_can_be_dropped(write: Write) -> None:
    path = write(
        base=BASE
        + '[arms.a]\n"penalty.floss" = false\n[arms.b]\n"penalty.resreg" = 0.5\n[grid]\n"run.batch" = [1, 2]\n',
        own='inherits = "base.toml"\n[arms]\na = false\n[arms.c]\n"penalty.floss.steps" = 2\n'
        '[grid]\n"run.batch" = [3]\n',
    )
    found = {cell.arm: cell.recipe for cell in cells([path], Axes([0]))}
    assert list(found) == ["own-b-batch3", "own-c-batch3"]
    assert found["own-b-batch3"].penalty["resreg"]["weight"] == 0.5
    assert found["own-c-batch3"].penalty["floss"] == {**found["own-b-batch3"].penalty["floss"], "steps": 2}
    single = write(single='inherits = "own.toml"\n[arms]\nb = false\nc = false\n[grid]\n"run.batch" = false\n')
    assert [cell.arm for cell in cells([single], Axes([0]))] == ["single"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[grid]\n"optimizer.lrr" = [1]\n', "no setting 'optimizer.lrr'; did you mean 'lr'"),
        ('[grid]\n"penalty.jacreg.ceilng" = [8]\n', "no option 'ceilng'; did you mean 'ceiling'"),
        ('[grid]\n"penalty.jacrg.ceiling" = [8]\n', "no penalty called 'jacrg'; did you mean 'jacreg'"),
        ('[grid]\n"lr" = [1]\n', "varies what it cannot: 'lr' is no setting"),
        ('[grid]\n"optimizer.lr" = 1\n', "should give a list"),
        ('[grid]\n"optimizer.lr" = []\n', "should give a list"),
        ('[grid]\n"penalty.floss" = [{weight = 1}]\n', r"\[arms.NAME\]"),
        ('[grid]\n"run.seed" = [1]\n', "--seeds"),
        ('[grid]\n"run.batch" = [2, 2]\n', "two runs would both be called"),
        ("[grid.optimizer]\nlr = [1]\n", "should give a list .* for 'optimizer'"),
        ("[arms]\na = 3\n", r"\[arms.a\]"),
        ('[arms.a]\n"run.stps" = 3\n', "no setting 'run.stps'; did you mean 'steps'"),
    ],
)
def test_a_wrong_grid_is_named(write: Write, tables: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cells([write(own=BASE + tables)], Axes([0]))


def test_what_an_axis_varies_is_not_set_as_well(write: Write) -> None:
    path = write(own=BASE + '[grid]\n"run.batch" = [1, 2]\n')
    for axes in (
        Axes([0], overrides=["run.batch=3"]),
        Axes([0], lrs=[1.0], overrides=["optimizer.lr=3"]),
        Axes([0], overrides=["run.seed=3"]),
    ):
        with pytest.raises(UsageError, match=r"--set run.seed=3 would|--set run.batch=|--set optimizer.lr="):
            cells([path], axes)
    with pytest.raises(UsageError, match="two runs would both be called"):
        cells([path, path], Axes([0]))
    with pytest.raises(UsageError, match="two runs would both be called"):
        cells([path], Axes([0, 0]))


def test_every_packaged_recipe_says_what_it_is_for() -> None:
    from dyneq.train.recipe_listing import comment

    for name in packaged():
        assert len(comment(name)) > 20, name
