"""Foreign files: the imported force is theirs, weights arrive bit for bit, and what does not fit is one sentence."""

import hashlib
import io
import math
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mapping import MAPPING, SYMBOLS, Bomb, fuzz, nothing_touched, outcome_of, with_line, written
from torch import nn

from dyneq.catalog.foreign import import_foreign
from dyneq.catalog.mapping import read_mapping
from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import CharacterVocabulary


class Norm(nn.Module):
    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))
        self.shift = nn.Parameter(torch.zeros(8)) if shift else None


class Columns(nn.Module):
    """x @ weight + bias: the weight is stored the other way round than by nn.Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).tril())


class Theirs(nn.Module):
    """A block as somebody else might write it: fused and transposed projections, tied read-out, a longer context."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Parameter(torch.empty(9, 8)), nn.Parameter(torch.empty(10, 8))
        self.norm_a, self.norm_b = Norm(shift=True), Norm(shift=False)
        self.qkv, self.down = Columns(8, 24), Columns(32, 8)
        self.out, self.up = nn.Linear(8, 8), nn.Linear(8, 32)
        self.unused = Mask()
        generator = torch.Generator().manual_seed(5)
        for p in self.parameters():  # every number random, so that no entry of the mapping multiplies zero or one
            p.data = torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1] if p.ndim == 2 else 3)


def their_force(w: dict[str, torch.Tensor], tokens: list[int], z: torch.Tensor) -> torch.Tensor:
    """The force on one sample, z ``[token, channel]``, token by token and head by head, damping 0.5, 2 heads."""
    w = {name: t.double() for name, t in w.items()}

    def normed(row: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor | float) -> torch.Tensor:
        mean = sum(row) / 8
        variance = sum((value - mean) ** 2 for value in row) / 8
        return (row - mean) / torch.sqrt(variance + 1e-5) * gain + shift

    rows = []
    fused = [normed(row, w["norm_a.gain"], w["norm_a.shift"]) @ w["qkv.weight"] + w["qkv.bias"] for row in z]
    for t, row in enumerate(z):
        heads = []
        for head in (0, 4):
            q = fused[t][head : head + 4]
            scores = torch.stack([q @ fused[s][8 + head : 12 + head] / 2 for s in range(t + 1)])
            weights = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
            heads.append(sum(weights[s] * fused[s][16 + head : 20 + head] for s in range(t + 1)))
        attended = w["out.weight"] @ torch.cat(heads) + w["out.bias"]
        hidden = w["up.weight"] @ normed(row, w["norm_b.gain"], 0.0) + w["up.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = w["wte"][tokens[t]] + w["wpe"][t]
        rows.append(x - 1.5 * row + attended + hidden @ w["down.weight"] + w["down.bias"])
    return torch.stack(rows)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(Theirs().state_dict())


@pytest.fixture
def mapping(tmp_path):
    return read_mapping(written(tmp_path, MAPPING))


@pytest.fixture
def good(tmp_path, state, mapping) -> tuple[bytes, Checkpoint]:
    """Return a good file and what is imported from it."""
    path = saved(tmp_path, state)
    return path.read_bytes(), import_foreign(path, mapping)


def saved(folder: Path, state: object, step: object = 800, **more: object) -> Path:
    torch.save({"trainer": {"state": state, "step": step, "scores": {"val": 2.25}}, **more}, folder / "run7.pt")
    return folder / "run7.pt"


def imported(folder: Path, state: object, text: str | bytes = MAPPING, **options: object) -> Checkpoint:
    return import_foreign(saved(folder, state, **options), read_mapping(written(folder, text)))


def refused(folder: Path, state: object, message: str, text: str = MAPPING, **options: object) -> str:
    with pytest.raises(DyneqError, match=message) as caught:
        imported(folder, state, text, **options)
    assert "\n" not in str(caught.value)
    assert "run7.pt" in str(caught.value)
    assert "theirs.toml" in str(caught.value)
    return str(caught.value)


def distance(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between our force and theirs, in float64, on random states."""
    system = checkpoint.bind()
    z = torch.randn(system.initial_state().shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    ours = system.force(z).detach()
    theirs = [their_force(state, row.tolist(), z[i]) for i, row in enumerate(system.tokens)]
    return (ours - torch.stack(theirs)).abs().max().item()


def test_the_imported_force_is_theirs(tmp_path, state):
    checkpoint = imported(tmp_path, state)
    # sums of some 100 terms of size 10, each with a relative rounding of 1.1e-16
    assert distance(checkpoint, state) < 100 * 10 * 1.2e-16
    system = checkpoint.bind()
    z = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(system.block.logits(z), 3 * z @ state["wte"].double().T, rtol=1e-6, atol=1e-6)
    assert (checkpoint.step, checkpoint.metrics, checkpoint.name) == (800, {"validation_loss": 2.25}, "run7")
    assert {p.dtype for p in checkpoint.block.parameters()} == {torch.float32}


def test_a_wrong_entry_is_another_force(tmp_path, state):
    swapped = MAPPING.replace("columns = [0, 8]", "columns = [x, 8]").replace("columns = [8, 16]", "columns = [0, 8]")
    assert distance(imported(tmp_path, state, swapped.replace("[x, 8]", "[8, 16]")), state) > 1e-2
    assert distance(imported(tmp_path, state, with_line("damping", "")), state) > 1e-2
    untransposed = with_line('"attn.wk.weight"', '"attn.wk.weight" = { from = "qkv.weight", columns = [8, 16] }')
    assert distance(imported(tmp_path, state, untransposed), state) > 1e-2


def test_scaling_rounds_once(tmp_path, state):
    head = imported(tmp_path, state).block.state_dict()["head.weight"].numpy()
    assert np.array_equal(head, (state["wte"].numpy().astype(np.float64) * 3.0).astype(np.float32))


def test_the_origin_is_kept(tmp_path, state):
    checkpoint = imported(tmp_path, state)
    assert checkpoint.recipe == {
        "imported": {
            "mapping": "theirs.toml",
            "mapping_sha256": hashlib.sha256((tmp_path / "theirs.toml").read_bytes()).hexdigest(),
            "source": "run7.pt",
            "source_sha256": hashlib.sha256((tmp_path / "run7.pt").read_bytes()).hexdigest(),
        }
    }
    save_checkpoint(tmp_path / "ours.pt", checkpoint)
    again = load_checkpoint(tmp_path / "ours.pt")
    assert again.recipe == checkpoint.recipe
    assert again.evaluation.sha256 == checkpoint.evaluation.sha256
    assert distance(again, state) == distance(checkpoint, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_round_trip_is_bit_for_bit(tmp_path, dtype):
    config = ThickConfig(vocabulary=9, channels=8, heads=2, tokens=6, qk_norm=True, final_norm=True)
    block = ThickBlock(config, torch.Generator().manual_seed(1)).to(dtype)
    batch = EvaluationBatch(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    save_checkpoint(tmp_path / "run7.pt", Checkpoint(block, CharacterVocabulary(SYMBOLS), batch, step=12))
    weights = "\n".join(f'"{name}" = "{name}"' for name in block.state_dict())
    text = f"""
        format = "dyneq-mapping/1"
        [block]
        channels = 8
        heads = 2
        tokens = 6
        qk_norm = true
        final_norm = true
        [file]
        weights = "model"
        step = "step"
        [vocabulary]
        characters = "{SYMBOLS}"
        [evaluation]
        file = "text.txt"
        samples = 2
        [weights]
        {weights}
    """
    checkpoint = import_foreign(tmp_path / "run7.pt", read_mapping(written(tmp_path, text)))
    assert checkpoint.step == 12
    assert checkpoint.block.config == config
    ours, theirs = checkpoint.block.state_dict(), block.state_dict()
    for name, weight in theirs.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name].view(torch.uint8), weight.view(torch.uint8)), name


def test_several_precisions_meet_in_one_that_holds_them(tmp_path, state):
    mixed = {**state, "wte": state["wte"].half(), "up.weight": state["up.weight"].bfloat16()}
    weights = imported(tmp_path, mixed).block.state_dict()
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert torch.equal(weights["tok.weight"], mixed["wte"].float())
    assert torch.equal(weights["ffn.fc.weight"], mixed["up.weight"].float())


def test_weights_on_top_beside_plain_values(tmp_path, state):
    text = MAPPING.replace('weights = "trainer.state"\n', "").replace("trainer.", "")
    torch.save({**state, "step": torch.tensor(7), "scores": {"val": torch.tensor(1.5)}}, tmp_path / "run7.pt")
    checkpoint = import_foreign(tmp_path / "run7.pt", read_mapping(written(tmp_path, text)))
    assert (checkpoint.step, checkpoint.metrics) == (7, {"validation_loss": 1.5})
    torch.save({**state, "step": 7, "scores": {"val": 1.5, "train": 1.2}}, tmp_path / "run7.pt")
    with pytest.raises(DyneqError, match=r"neither uses as a whole nor ignores 'scores.train' \(float\); add"):
        import_foreign(tmp_path / "run7.pt", read_mapping(tmp_path / "theirs.toml"))


def test_nested_names_and_keys_with_dots(tmp_path, state):
    nested = {**{n: t for n, t in state.items() if not n.startswith("qkv")}, "qkv": {}}
    nested["qkv"] = {"weight": state["qkv.weight"], "bias": state["qkv.bias"]}
    assert distance(imported(tmp_path, nested), state) == distance(imported(tmp_path, state), state)
    refused(tmp_path, {**nested, "qkv.bias": state["qkv.bias"]}, "'qkv.bias' names two things")
    torch.save({"trainer.state": state, "trainer": {"step": 1, "scores": {"val": 2.0}}}, tmp_path / "run7.pt")
    assert import_foreign(tmp_path / "run7.pt", read_mapping(tmp_path / "theirs.toml")).step == 1
    both = {"trainer.state": state, "trainer": {"state": dict(state), "step": 1, "scores": {"val": 2.0}}}
    torch.save(both, tmp_path / "run7.pt")
    with pytest.raises(DyneqError, match=r"file.weights is 'trainer.state', but several things"):
        import_foreign(tmp_path / "run7.pt", read_mapping(tmp_path / "theirs.toml"))


@pytest.mark.parametrize(
    ("pattern", "name", "step"),
    [
        ("ckpt-{step}.pt", "ckpt-0800.pt", 800),
        ("epoch=*-step={step}-*.pt", "epoch=3-step=120-val=2.41.pt", 120),
        ("*_{step}.pt", "run2_40.pt", 40),
        ("{step}.pt", "12.pt", 12),
        ("ckpt-{step}.pt", "ckpt-x.pt", None),
        ("ckpt-{step}.pt", "my-ckpt-3.pt", None),
        ("ckpt-{step}.pt", "ckpt-3.5.pt", None),
        ("*{step}*", "run2_40.pt", None),  # which of the two is not clear
        ("ckpt-{step}.pt", f"ckpt-{'9' * 30}.pt", None),
    ],
)
def test_the_step_in_the_name(tmp_path, state, pattern, name, step):
    mapping = read_mapping(written(tmp_path, with_line("step =", f'step_name = "{pattern}"')))
    os.rename(saved(tmp_path, state), tmp_path / name)
    if step is None:
        with pytest.raises(DyneqError, match="should fit step_name"):
            import_foreign(tmp_path / name, mapping)
    else:
        assert import_foreign(tmp_path / name, mapping).step == step


def test_a_step_that_is_said(tmp_path, state):
    assert imported(tmp_path, state, with_line("step =", "step = 30")).step == 30


SPARSE = torch.eye(8).to_sparse()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": torch.zeros(2)}, r"neither uses as a whole nor ignores 'more' \[2\]; add them"),
        ({"more": 3}, r"neither uses as a whole nor ignores 'more' \(int\)"),
        ({f"m{i}": 3 for i in range(30)}, r"'m0' \(int\), .* and 22 more"),
        ({"out.weight": None}, "'out.weight' should be a tensor, but is of type NoneType"),
        ({"out.weight": torch.zeros(8, 7)}, r"'attn.wo.weight' should have shape \[8, 8\] .* has \[8, 7\]"),
        (
            {"qkv.weight": torch.zeros(7, 24)},
            r"'qkv.weight' \[7, 24\] after columns \[0, 8\] and transpose has \[8, 7\]",
        ),
        ({"qkv.weight": torch.zeros(8, 23)}, r"columns = \[16, 24\] of 'attn.wv.weight' do not fit .* shape \[8, 23\]"),
        ({"qkv.weight": torch.zeros(8, 25)}, r"neither uses as a whole nor ignores 'qkv.weight' \[8, 25\]"),
        ({"qkv.bias": torch.zeros(25)}, r"neither uses as a whole nor ignores 'qkv.bias' \[25\]"),
        ({"qkv.weight": torch.zeros(24)}, r"columns = \[0, 8\] .* do not fit"),
        ({"down.weight": torch.zeros(256)}, "should have two axes but has shape"),
        ({"wpe": torch.zeros(5, 8)}, r"rows = \[0, 6\] of 'pos.weight' do not fit 'wpe'"),
        ({"wpe": torch.tensor(1.0)}, r"rows = \[0, 6\] of 'pos.weight' do not fit"),
        ({"out.weight": torch.zeros(8, 8, dtype=torch.int64)}, "dense floating tensor, but is torch.int64"),
        ({"out.weight": torch.zeros(8, 8, dtype=torch.bool)}, "dense floating tensor, but is torch.bool"),
        ({"out.weight": torch.zeros(8, 8, dtype=torch.complex64)}, "dense floating tensor, but is torch.complex64"),
        ({"out.weight": torch.zeros(8, 8).to(torch.float8_e5m2)}, "dense floating tensor, but is torch.float8_e5m2"),
        ({"out.weight": SPARSE}, "dense floating tensor, but is torch.float32 .torch.sparse_coo"),
        ({"out.weight": torch.zeros(8, 8, device="meta")}, "dense floating tensor, but is .* meta"),
        ({"out.weight": torch.zeros(1).expand(8, 8)}, "store each of its values"),
        ({"out.weight": torch.zeros(1).expand(10**6, 10**6)}, "store each of its values"),
        ({"out.weight": torch.zeros(10**6, 10**6, 0)}, "store each of its values"),
        ({"out.weight": torch.full((8, 8), math.nan)}, "'out.weight' holds 64 NaN or infinite values out of 64"),
        ({"out.weight": torch.full((8, 8), math.inf)}, "'out.weight' holds 64 NaN or infinite values"),
        ({"wte": torch.full((9, 8), 3e38)}, "the scale or fill of 'head.weight' does not fit into torch.float32"),
        ({"x" * 2000: torch.zeros(2)}, "names of more than 1000 characters"),
        ({f"m{i}": 3 for i in range(20_000)}, "more than 20000 entries"),
    ],
)
def test_each_wrong_content_has_its_own_sentence(tmp_path, state, change, message):
    refused(tmp_path, {**state, **change}, message)


def test_a_name_they_do_not_have(tmp_path, state):
    state["out.wieght"] = state.pop("out.weight")
    refused(tmp_path, state, r"'attn.wo.weight' should come from 'out.weight', but the file has none .*'out.wieght'")


@pytest.mark.parametrize("state", [None, 3, [torch.zeros(2)], torch.zeros(2), {3: torch.zeros(2)}, "text"])
def test_what_is_no_state_dict(tmp_path, state):
    refused(tmp_path, state, "a dict from names to tensors was expected at 'trainer.state'")


def test_a_dict_that_holds_itself(tmp_path, state):
    state["more"] = state
    refused(tmp_path, state, "nested deeper than 32|more than 20000 entries")
    wide: dict[str, object] = {}
    for _ in range(30):  # a billion laughs
        wide = {"a": wide, "b": wide, "c": 1}
    refused(tmp_path, wide, "more than 20000 entries")


def kind(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(
    "step", [None, True, -1, 1.5, "7", 2**63, 10**300, torch.zeros(2), torch.tensor(1.0)], ids=kind
)
def test_a_step_that_is_none(tmp_path, state, step):
    refused(tmp_path, state, "should be an integer from 0 on", step=step)


@pytest.mark.parametrize("value", [None, True, "2.5", 2**64, 10**300, torch.zeros(2), torch.tensor(1j)], ids=kind)
def test_a_metric_that_is_none(tmp_path, state, value):
    text = with_line("validation_loss", 'validation_loss = "extra"')
    refused(tmp_path, state, "'validation_loss' at 'extra' should be a number of 64 bits", text, extra=value)


def test_a_path_that_leads_nowhere(tmp_path, state):
    text = with_line("validation_loss", 'validation_loss = "trainer.scores.vla"')
    refused(tmp_path, state, r"metrics.validation_loss is .* nothing is there \(the nearest is 'val'\)", text)
    text = with_line("validation_loss", 'validation_loss = "trainer.step.val"')
    refused(tmp_path, state, "nothing is there", text)


SIZES = {"channels": "channels = 8", "tokens": "tokens = 6"}


@pytest.mark.parametrize("setting", ["channels = 20000", "tokens = 100000000", "widening = 1000000000"])
def test_absurd_sizes_take_no_memory(tmp_path, state, setting):
    name = setting.split()[0]
    text = with_line("damping", f"damping = 0.5\n{setting}") if name == "widening" else with_line(SIZES[name], setting)
    refused(tmp_path, state, "should have shape", text)


def test_a_safetensors_file_is_told_apart(tmp_path, mapping):
    with pytest.raises(DyneqError, match=r"run7.safetensors is not; convert it"):
        import_foreign(tmp_path / "run7.safetensors", mapping)


# -- files that are no good -------------------------------------------------------------------------------------------


def test_other_pickles_run_nothing(tmp_path, mapping, state):
    bomb = Bomb(tmp_path / "ran")
    path = tmp_path / "run7.pt"
    for held in (bomb, {"trainer": bomb}, {"trainer": {"state": {**state, "x": bomb}}}, Theirs(), np.float64(1), print):
        for zipped in (True, False):
            torch.save(held, path, _use_new_zipfile_serialization=zipped)
            with nothing_touched(tmp_path), pytest.raises(DyneqError):
                import_foreign(path, mapping)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(bomb, protocol=protocol))
        with nothing_touched(tmp_path), pytest.raises(DyneqError, match="bare pickle"):
            import_foreign(path, mapping, trust=True)
    # only the explicit way round runs it
    torch.save({"trainer": {"state": state, "step": 3, "scores": {"val": 1.0}, "x": bomb}}, path)
    assert import_foreign(path, mapping, trust=True).step == 3
    assert (tmp_path / "ran").is_dir()


def test_a_compressed_bomb_is_not_unpacked(tmp_path, mapping, state):
    path = saved(tmp_path, {**state, "more": torch.zeros(10**6)})
    data, small = path.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    path.write_bytes(small.getvalue())
    for read in (load_checkpoint, lambda p: import_foreign(p, mapping)):
        with pytest.raises(DyneqError, match="claim to unpack to"):
            read(path)


@settings(fuzz, max_examples=100)
@given(
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
    byte=st.integers(1, 255),
    cut=st.booleans(),
)
def test_damaged_bytes_never_import_as_something_else(tmp_path, mapping, good, places, byte, cut):
    path, data = tmp_path / "run7.pt", bytearray(good[0])
    for place in places:
        data[int(place * len(data))] ^= byte
    path.write_bytes(data[: int(places[0] * len(data))] if cut else data)
    with nothing_touched(tmp_path):
        outcome = outcome_of(import_foreign, path, mapping)
    if isinstance(outcome, DyneqError):
        assert "\n" not in str(outcome)
    else:
        assert (outcome.step, outcome.metrics) == (good[1].step, good[1].metrics)
        theirs = good[1].block.state_dict()
        assert all(torch.equal(w, theirs[name]) for name, w in outcome.block.state_dict().items())


NAMES = st.sampled_from(
    ["wte", "wpe", "qkv", "qkv.bias", "out.weight", "weight", "trainer", "state", "step"]
) | st.text(max_size=5)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int8, torch.complex64, torch.bool, torch.bfloat16]),
)
THINGS = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=4) | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers(), inner, max_size=4),
    max_leaves=8,
)


@settings(fuzz, max_examples=100)
@given(changes=st.dictionaries(NAMES, THINGS, max_size=3), step=THINGS, whole=THINGS, replace=st.booleans())
def test_arbitrary_contents(tmp_path, mapping, state, changes, step, whole, replace):
    state = {**state, **changes}
    path = saved(tmp_path, whole if replace else state, step=step)
    with nothing_touched(tmp_path):
        outcome = outcome_of(import_foreign, path, mapping)
    if isinstance(outcome, DyneqError):
        assert "\n" not in str(outcome)
        assert "run7.pt" in str(outcome)
    else:  # whatever was accepted is what the file says
        weights = outcome.block.state_dict()
        assert torch.equal(weights["tok.weight"].double(), state["wte"].double())
        assert torch.equal(weights["attn.wo.weight"].double(), state["out.weight"].double())
        assert outcome.step == int(step)
