"""Files that are no good checkpoints: each its own one-sentence error; nothing in them runs, nothing wrong loads."""

import copy
import io
import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from test_checkpoint_files import assert_same

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint


def refused(path, message, **options):
    with pytest.raises(DyneqError, match=message) as caught:
        load_checkpoint(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


@pytest.fixture
def good(tmp_path, checkpoint):
    """Return the plain values of a good .pt file."""
    save_checkpoint(tmp_path / "good.pt", checkpoint)
    return torch.load(tmp_path / "good.pt", weights_only=True)


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "absent.pt", "there is no checkpoint file")
    refused(tmp_path, "is a folder")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path / "empty.pt", "these 0 bytes are not one or are truncated")
    refused(tmp_path / "empty.safetensors", "damaged or has none")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "not one or are truncated")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_truncation_is_noticed(tmp_path, checkpoint, suffix):
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, checkpoint)
    data = path.read_bytes()
    cuts = {1, 3, 4, 7, 8, 9, 30, 100, 500, *range(0, len(data), 997), *range(len(data) - 70, len(data))}
    for cut in sorted(c for c in cuts if 0 < c < len(data)):
        path.write_bytes(data[:cut])
        refused(path, "truncated|damaged")


class Bomb:
    """Pickles to a call that makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_code_does_not(tmp_path, good):
    target = tmp_path / "ran"
    torch.save({**good, "metrics": {"x": Bomb(target)}}, tmp_path / "inside.pt")
    torch.save(Bomb(target), tmp_path / "alone.pt")
    torch.save(Bomb(target), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for protocol in range(6):
        (tmp_path / f"bare{protocol}.pt").write_bytes(pickle.dumps(Bomb(target), protocol=protocol))
    names = f"{os.mkdir.__module__}.mkdir"
    for path in sorted(tmp_path.glob("*.pt")):
        if path.name != "good.pt":
            text = refused(path, names)
            assert ("--trust" in text) == (path.name in ("inside.pt", "alone.pt"))
        assert not target.exists(), path.name
    # the explicit way round does what it says, and only then
    loaded = load_checkpoint(tmp_path / "inside.pt", trust=True)
    assert target.is_dir()
    assert loaded.metrics == {"x": None}
    refused(tmp_path / "bare2.pt", "bare pickle", trust=True)


def test_several_offending_names_are_all_named(tmp_path, good):
    torch.save({**good, "metrics": {"a": print, "b": io.StringIO, "c": 1}}, tmp_path / "c.pt")
    text = refused(tmp_path / "c.pt", "import and run")
    assert "print" in text
    assert "StringIO" in text


def bad(tmp_path, good, change):
    plain = copy.deepcopy(good)
    change(plain)
    torch.save(plain, tmp_path / "bad.pt")
    return tmp_path / "bad.pt"


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(plain):
        for key in keys:
            plain = plain[key]
        plain[last] = value

    return change


def drop(*keys):
    def change(plain):
        for key in keys[:-1]:
            plain = plain[key]
        del plain[keys[-1]]

    return change


def spoil(value):
    def change(plain):
        plain["model"]["ffn.fc.weight"][3, 2] = value
        plain["model"]["ffn.fc.weight"][0, 0] = value

    return change


def narrow(plain):
    plain["model"]["attn.wq.weight"] = plain["model"]["attn.wq.weight"][:, :-1]


def half_of_them(plain):
    plain["model"]["attn.wq.weight"] = plain["model"]["attn.wq.weight"].half()


TOKENS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", "dyneq-checkpoint/2"), "reads the checkpoint format 'dyneq-checkpoint/1', but the file has"),
        (put("format", None), "has None"),
        (drop("format"), "a mapping without a format"),
        (drop("metrics"), r"lacks \['metrics'\]"),
        (drop("evaluation"), r"lacks \['evaluation'\]"),
        (put("weights", {}), r"holds \['weights'\]"),
        (put(3, {}), r"holds \['3'\]"),
        (put("step", 1.5), "step should be an integer"),
        (put("metrics", [1]), "metrics and recipe mappings"),
        (put("config", None), "config should be a mapping"),
        (put("config", {}), "config should be a mapping"),
        (put("config", "kind", "thikc"), r"no kind of block called 'thikc'; did you mean 'thick'"),
        (put("config", "dampnig", 1.0), r"dampnig: .*did you mean 'damping'"),
        (put("config", 3, 1.0), "config does not describe a block"),
        (put("config", "damping", -2.0), "damping"),
        (put("config", "heads", 3), "multiple of heads"),
        (drop("config", "channels"), "channels: Field required"),
        (put("config", "channels", 12), r"should have shape .* by the checkpoint's config"),
        (narrow, r"'attn.wq.weight' should have shape \[8, 8\] .* but has \[8, 7\]"),
        (drop("model", "ln1.bias"), r"missing \['ln1.bias'\]"),
        (put("model", "extra", torch.zeros(1)), r"unexpected \['extra'\]"),
        (put("model", 7, torch.zeros(1)), "'model' should map names to tensors"),
        (put("model", "ln1.bias", [0.0]), "'model' should map names to tensors"),
        (put("model", None), "'model' should map names to tensors"),
        (put("model", {}), "missing"),
        (put("model", "ln1.bias", torch.zeros(8, dtype=torch.int64)), "dense floating tensors of one dtype"),
        (put("model", "ln1.bias", torch.zeros(8, dtype=torch.complex64)), "dense floating tensors of one dtype"),
        (put("model", "ln1.bias", torch.zeros(8).to_sparse()), "dense floating tensors of one dtype"),
        (put("model", "ln1.bias", torch.zeros(8, device="meta")), "dense floating tensors of one dtype"),
        (half_of_them, "torch.float16, torch.float32"),
        (spoil(float("nan")), r"'ffn.fc.weight' holds 2 NaN or infinite values out of 256"),
        (spoil(float("inf")), "holds 2 NaN or infinite values"),
        (put("tokenizer", None), "tokenizer should be of kind 'bpe' or 'characters'"),
        (put("tokenizer", "kind", "words"), "is 'words'"),
        (put("tokenizer", "kind", "bpe"), "'bpe' should hold symbols as a list of strings"),
        (put("tokenizer", "symbols", None), "of kind 'characters' with its symbols"),
        (put("tokenizer", "symbols", "aab"), "distinct characters"),
        (put("tokenizer", "symbols", "ab"), "vocabulary has 2 symbols, but its evaluation batch uses"),
        (put("evaluation", None), "should pin an evaluation batch"),
        (drop("evaluation", "targets"), "should pin an evaluation batch"),
        (put("evaluation", "tokens", TOKENS), "should pin an evaluation batch"),
        (put("evaluation", {"tokens": TOKENS.int(), "targets": TOKENS}), "should pin an evaluation batch"),
        (put("evaluation", {"tokens": TOKENS[0], "targets": TOKENS[0]}), "should pin an evaluation batch"),
        (put("evaluation", {"tokens": TOKENS[:0], "targets": TOKENS[:0]}), "should pin an evaluation batch"),
        (put("evaluation", {"tokens": TOKENS + 11, "targets": TOKENS}), r"0\.\.10, but the batch has 11\.\.11"),
        (put("evaluation", {"tokens": TOKENS, "targets": TOKENS + 11}), r"0\.\.10, but the batch has 11\.\.11"),
        (put("evaluation", {"tokens": TOKENS, "targets": TOKENS - 100}), r"-100\.\.-100"),
        (put("evaluation", {"tokens": TOKENS.repeat(1, 2), "targets": TOKENS.repeat(1, 2)}), "at most 5 tokens"),
        (put("evaluation", {"tokens": TOKENS.to_sparse(), "targets": TOKENS}), "should pin an evaluation batch"),
    ],
)
def test_each_wrong_content_has_its_own_error(tmp_path, good, change, message):
    refused(bad(tmp_path, good, change), message)


@pytest.mark.parametrize("held", [[1, 2], torch.zeros(3), "text", None, {"state_dict": {}}])
def test_other_peoples_files(tmp_path, held):
    torch.save(held, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "a dyneq checkpoint .* was expected")


def test_safetensors_without_or_with_a_wrong_header(tmp_path, checkpoint):
    path = tmp_path / "c.safetensors"
    path.write_bytes(save_tensors({"model.w": torch.zeros(3)}))
    refused(path, "damaged or has none")
    save_checkpoint(path, checkpoint)
    data = path.read_bytes()
    tensors = load_tensors(data)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["dyneq"])

    def write(tensors, header):
        path.write_bytes(save_tensors(tensors, metadata={"dyneq": json.dumps(header)}))

    for foreign in ([], None, 3, {k: v for k, v in header.items() if k != "sha256"}):
        write(tensors, foreign)
        refused(path, "damaged or has none")
    write(tensors, {**header, "step": header["step"] + 1})
    refused(path, "does not match its SHA-256")
    write({**tensors, "model.ln1.bias": tensors["model.ln1.bias"] + 1}, header)
    refused(path, "does not match its SHA-256")
    write({**tensors, "more": torch.zeros(1)}, header)
    refused(path, "does not match its SHA-256")
    write(tensors, header)
    assert_same(load_checkpoint(path), checkpoint)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_flipped_bit_of_a_weight_is_noticed(tmp_path, checkpoint, suffix):
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, checkpoint)
    data = path.read_bytes()
    weight = checkpoint.block.ffn.fc.weight.detach().numpy().tobytes()
    start = data.index(weight)
    for offset in range(0, len(weight), 97):
        flipped = bytearray(data)
        flipped[start + offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        refused(path, "damaged")


@st.composite
def damage(draw):
    """A function on bytes: a few flips, a cut, a removed, doubled or zeroed stretch, or a tail."""
    kind = draw(st.sampled_from(["flip", "cut", "remove", "double", "zero", "tail"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=6))
    byte, size = draw(st.integers(1, 255)), draw(st.integers(1, 64))

    def apply(data):
        at = int(places[0] * len(data))
        if kind == "flip":
            changed = bytearray(data)
            for place in places:
                changed[int(place * len(data))] ^= byte
            return bytes(changed)
        stretch = data[at : at + size]
        replaced = {"remove": b"", "double": 2 * stretch, "zero": bytes(len(stretch))}
        if kind in replaced:
            return data[:at] + replaced[kind] + data[at + size :]
        return data[:at] if kind == "cut" else data + bytes([byte]) * size

    return apply


def outcome_of(path):
    try:
        return load_checkpoint(path)
    except DyneqError as error:
        return error


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(change=damage())
def test_damaged_bytes_never_load_as_something_else(tmp_path, checkpoint, suffix, change):
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, checkpoint)
    path.write_bytes(change(path.read_bytes()))
    outcome = outcome_of(path)
    if isinstance(outcome, DyneqError):
        assert "\n" not in str(outcome)
    else:
        assert_same(outcome, checkpoint)
