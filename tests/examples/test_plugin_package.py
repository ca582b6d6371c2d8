"""examples/plugin is a package of its own: installed with pip, found, used, checked, and gone when uninstalled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "examples" / "plugin"
#: torch's own forward mode compiles its decompositions on first use.
STRICT = ["-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:DeprecationWarning"]
PACKAGE = {"name": "dyneq-extras-example", "version": "0.3.0"}
SHALLOW = ["--depth", "0", "--depth", "3", "--depth", "6", "--batch", "2"]
RING = "dyneq_extras_example.ring:ring"
USED = [
    ["list", "probes", "--json"],
    ["list", "estimators", "--json"],
    ["list", "systems", "--json"],
    ["--help"],
    ["speed", "converges", *SHALLOW],
    ["speed", "converges", *SHALLOW, "--tolerance", "0.5", "--json"],
    ["speed", "converges", "--depth", "3"],
    ["speed", RING, "--depth", "0", "--depth", "100000000"],
    ["spectrum", RING, "--at", "root", "--depth", "200", "--json"],
    ["train", "--recipe", "chain.toml", "--data", "text.txt", "--steps", "3", "--run", "./chain", "--quiet", "--json"],
    ["spectrum", "chain/step-000003.pt", "--batch", "2", "--depth", "300", "--json"],
]
GONE = [
    ["list", "probes"],
    ["speed", "converges"],
    ["train", "--gradient", "onestep"],
    ["spectrum", "chain/step-000003.pt"],
    ["spectrum", RING],
]


def python(*arguments, folder, path=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DYNEQ_")}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder to work in, with a text and the plug-in's recipe."""
    made = tmp_path_factory.mktemp("work")
    (made / "text.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 40000)))
    shutil.copy(PLUGIN / "chain.toml", made)
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder the package was installed into, from a copy and without any network."""
    scratch = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, scratch / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    python("-m", "pip", "install", *offline, "--target", scratch / "site", scratch / "source", folder=scratch)
    return scratch / "site"


@pytest.fixture(scope="module")
def used(folder, installed):
    """Return what each of the commands gave, by its words."""
    out = python(*STRICT, HERE / "plugin_driver.py", json.dumps(USED), folder=folder, path=installed)
    return {" ".join(words): tuple(gave) for words, gave in zip(USED, json.loads(out), strict=True)}


def one(used, *start):
    # the shortest, where one command's words begin another's
    return used[min((words for words in used if words.startswith(" ".join(start))), key=len)]


def document(used, *start):
    code, out, err = one(used, *start)
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(("kind", "name"), [("probes", "speed"), ("estimators", "onestep"), ("systems", "chain")])
def test_list_names_it_with_its_origin(used, kind, name):
    results = {r["name"]: r for r in document(used, "list", kind)["results"]}
    assert results[name]["distribution"] == PACKAGE
    assert results[name]["value"].startswith("dyneq_extras_example.")
    assert results[name]["error"] is None
    assert all(p["description"] for p in results[name]["parameters"])
    assert {r["distribution"]["name"] for r in results.values()} == {"dyneq", PACKAGE["name"]}
    if kind != "systems":
        assert results[name]["needs"] == ["loss"]


def test_help_lists_the_probe_apart(used):
    code, out, _ = one(used, "--help")
    assert code == 0
    assert "speed  From dyneq-extras-example 0.3.0" in out.split("Further probes:")[1]


def test_the_probe_is_a_command(used):
    code, out, err = one(used, "speed converges --depth 0 --depth 3 --depth 6 --batch 2")
    assert (code, err) == (0, "")
    assert "converges (ThickBlock, step 300), 2 samples" in out
    assert "dimensions: depth 3 (0 to 6), sample 2 (0 to 1)" in out
    assert "not at a fixed point at depth 6" in out
    found = document(used, "speed converges --depth 0 --depth 3 --depth 6 --batch 2 --tolerance")
    assert found["command"] == "speed"
    assert found["checkpoint"]["step"] == 300
    loss = np.array(found["results"][0]["data_vars"]["loss"]["data"])
    assert loss.shape == (3, 2)
    assert (loss > 0).all()
    assert json.loads(found["results"][0]["attrs"]["params"]) == {"depth": [0, 3, 6], "tolerance": 0.5}


def test_its_own_validation_is_one_sentence(used):
    code, out, err = one(used, "speed converges --depth 3")
    assert (code, out) == (2, "")
    assert err == "dyneq: settling is seen between two depths or more, but [3] was asked for\n"


def test_its_need_is_refused_before_anything_is_computed(used):
    # a hundred million steps would not end
    code, out, err = one(used, "speed", RING)
    assert (code, out) == (2, "")
    assert "the probe 'speed' needs a loss, but ring has none" in err
    assert err.count("\n") == 1


def test_the_factory_has_the_spectrum_of_its_formula(used):
    (entry,) = document(used, "spectrum", RING)["results"]
    assert entry["abscissa"] == pytest.approx(-1 + 1.8 / 2, abs=1e-9)


def test_block_and_gradient_train_and_the_checkpoint_has_a_spectrum(used):
    trained = document(used, "train")
    assert trained["status"] == "completed"
    assert trained["params"]["block"]["kind"] == "chain"
    assert trained["params"]["gradient"]["name"] == "onestep"
    assert trained["results"][0]["validation_loss"] > 0
    found = document(used, "spectrum chain/")
    assert found["checkpoint"]["sha256"] == trained["checkpoint"]["sha256"]
    assert found["system"]["system"] == "ChainBlock"
    assert found["results"][0]["method"].startswith("token")
    assert found["results"][0]["abscissa"] < 0


def test_its_numbers_are_right(folder, installed):
    out = python(*STRICT, HERE / "plugin_numbers.py", folder=folder, path=installed)
    assert len(json.loads(out)) == 5


@pytest.mark.usefixtures("used")
def test_without_it_the_names_are_unknown_again(folder):
    gave = json.loads(python(*STRICT, HERE / "plugin_driver.py", json.dumps(GONE), folder=folder))
    (code, listed, _), *rest = gave
    assert code == 0
    assert "speed" not in listed
    words = ["called 'speed'", "called 'onestep'", "called 'chain'", "dyneq_extras_example"]
    for (code, out, err), word in zip(rest, words, strict=True):
        assert code in (1, 2)
        assert out == ""
        assert word in err
        assert err.count("\n") == 1
