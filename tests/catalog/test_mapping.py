"""Mapping files: what a good one says, one sentence for each bad one, and nothing but that for arbitrary text."""

import contextlib
import os
import pydoc_data.topics
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyneq.catalog.foreign import import_foreign
from dyneq.catalog.mapping import read_mapping
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.thick import ThickBlock, ThickConfig

SYMBOLS = "abcdefgh "
TEXT = "".join(SYMBOLS[(i * i + i // 7) % 9] for i in range(1200))

#: A block of 6 tokens and 8 channels, of a model with fused and transposed projections.
MAPPING = """
format = "dyneq-mapping/1"

[block]
kind = "thick"
channels = 8
heads = 2
tokens = 6
damping = 0.5
attention_bias = true

[file]
weights = "trainer.state"
step = "trainer.step"

[metrics]
validation_loss = "trainer.scores.val"

[vocabulary]
characters = "abcdefgh "

[evaluation]
file = "text.txt"
samples = 4
seed = 3
tokens = 5

[weights]
"tok.weight" = "wte"
"pos.weight" = { from = "wpe", rows = [0, 6] }
"ln1.weight" = "norm_a.gain"
"ln1.bias" = "norm_a.shift"
"ln2.weight" = "norm_b.gain"
"ln2.bias" = { fill = 0.0 }
"attn.wq.weight" = { from = "qkv.weight", columns = [0, 8], transpose = true }
"attn.wk.weight" = { from = "qkv.weight", columns = [8, 16], transpose = true }
"attn.wv.weight" = { from = "qkv.weight", columns = [16, 24], transpose = true }
"attn.wq.bias" = { from = "qkv.bias", rows = [0, 8] }
"attn.wk.bias" = { from = "qkv.bias", rows = [8, 16] }
"attn.wv.bias" = { from = "qkv.bias", rows = [16, 24] }
"attn.wo.weight" = "out.weight"
"attn.wo.bias" = "out.bias"
"ffn.fc.weight" = "up.weight"
"ffn.fc.bias" = "up.bias"
"ffn.pj.weight" = { from = "down.weight", transpose = true }
"ffn.pj.bias" = "down.bias"
"head.weight" = { from = "wte", scale = 3.0 }

[ignore]
names = ["wpe", "unused.*"]
"""


def written(folder: Path, text: str | bytes, name: str = "theirs.toml") -> Path:
    (folder / "text.txt").write_text(TEXT)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def refused(folder: Path, text: str | bytes, message: str) -> str:
    with pytest.raises(DyneqError, match=message) as caught:
        read_mapping(written(folder, text))
    assert "\n" not in str(caught.value)
    assert "theirs.toml" in str(caught.value)
    return str(caught.value)


def with_line(pattern: str, line: str) -> str:
    """Return the mapping with the one line that starts like ``pattern`` replaced."""
    changed, count = re.subn(rf"(?m)^{re.escape(pattern)}.*$", lambda _: line, MAPPING)
    assert count == 1, pattern
    return changed


def test_a_good_mapping(tmp_path):
    mapping = read_mapping(written(tmp_path, MAPPING))
    block = ThickBlock(ThickConfig(**mapping.config))
    assert mapping.shapes == {name: weight.shape for name, weight in block.state_dict().items()}
    assert (mapping.config["vocabulary"], mapping.config["damping"], mapping.config["eps"]) == (9, 0.5, 0.1)
    assert mapping.vocabulary.symbols == SYMBOLS
    assert mapping.evaluation.tokens.shape == (4, 5)
    # the characters in the indices of the mapping (the blank last), from the last tenth of the text, one after another
    for tokens, targets in zip(mapping.evaluation.tokens.tolist(), mapping.evaluation.targets.tolist(), strict=True):
        shown = "".join(SYMBOLS[i] for i in tokens)
        assert shown in TEXT[-120:]
        assert shown + SYMBOLS[targets[-1]] in TEXT[-120:]
        assert tokens[1:] == targets[:-1]
    again = read_mapping(tmp_path / "theirs.toml")
    assert again.evaluation.sha256 == mapping.evaluation.sha256
    assert (again.sha256, again.config) == (mapping.sha256, mapping.config)


def test_a_corpus_gives_vocabulary_and_batch(tmp_path):
    text = with_line('characters = "', 'corpus = "pydoc"').replace('file = "text.txt"', 'corpus = "pydoc"')
    mapping = read_mapping(written(tmp_path, text))
    symbols = sorted(set("\n".join(pydoc_data.topics.topics.values())))
    assert mapping.vocabulary.symbols == "".join(symbols)
    assert mapping.shapes["head.weight"] == (len(symbols), 8)
    assert mapping.evaluation.source["corpus"] == "pydoc"


def test_unused_indices_are_said(tmp_path):
    text = with_line('characters = "', 'characters = "abcdefgh "\nunused = 3')
    assert read_mapping(written(tmp_path, text)).config["vocabulary"] == 12
    text = text.replace("heads = 2", "heads = 2\nvocabulary = 12")
    assert read_mapping(written(tmp_path, text)).shapes["tok.weight"] == (12, 8)
    refused(
        tmp_path, text.replace("vocabulary = 12", "vocabulary = 11"), "'block.vocabulary' is 11, but .* 9 characters"
    )


BAD = [
    ('format = "', 'format = "dyneq-mapping/2"', "'format' should be 'dyneq-mapping/1', but is 'dyneq-mapping/2'"),
    ('format = "', "", "but is None"),
    ('format = "', "format = [1]", "but is a list of 1"),
    ("[block]", "[blokc]", r"there is no setting 'blokc'; did you mean 'block'|'block' is missing"),
    ("kind", 'kind = "thikc"', "no kind of block called 'thikc'; did you mean 'thick'"),
    ("kind", "kind = 3", "'block.kind' should be a name"),
    ("damping", "dampnig = 0.5", "no setting 'block.dampnig'; did you mean 'damping'"),
    ("damping", "damping = -3", "'block.damping' is -3, but: input should be greater than -1"),
    ("damping", "damping = inf", "'block.damping' should be finite"),
    ("heads", "heads = 3", "channels=8 is not a multiple of heads=3"),
    ("heads", "heads = []", "'block.heads' is a list of 0"),
    ("heads", "", "'block.heads' is missing"),
    ("channels", "channels = 1000000000", "no block can be built|numbers, but at most"),
    ("channels", f"channels = {'9' * 4000}\nvocabulary = 9", "channels=9+"),
    ("channels", f"channels = 2{'0' * 4000}", "no block can be built"),
    ("channels", f"channels = {'9' * 5000}", "TOML was expected"),
    ("tokens = 6", "tokens = 6\nwidening = 1000000000000000000", "no block can be built"),
    (
        "tokens = 6",
        "tokens = 6\nfinal_norm = true",
        r"\[weights\] lacks final.weight \[8\], final.bias \[8\]; say where",
    ),
    ('step = "', "", "one of step and step_name"),
    ('step = "', 'step = "s"\nstep_name = "{step}.pt"', "one of step and step_name"),
    ('step = "', 'step_name = "step.pt"', "should hold {step} once"),
    ('step = "', 'step_name = "{step}-{step}.pt"', "should hold {step} once"),
    ('step = "', "step = -1", "'file.step' is -1"),
    ('step = "', "step = true", "'file.step' is True"),
    ('step = "', "step = 1.5", "'file.step' is 1.5"),
    ('step = "', 'setp = "s"', "no setting 'file.setp'; did you mean 'step'"),
    ("validation_loss", '"validation loss" = "x"', r"metrics\.validation loss"),
    ("validation_loss", "validation_loss = 3", r"'metrics.validation_loss' is 3"),
    ('characters = "', 'characters = "aab"', "distinct characters"),
    ('characters = "', 'characters = ""', "'vocabulary.characters' is ''"),
    ('characters = "', "", "one of characters, corpus and file"),
    ('characters = "', 'characters = "ab"\ncorpus = "pydoc"', "one of characters, corpus and file"),
    ('characters = "', 'corpus = "pidoc"', "'vocabulary.corpus' is 'pidoc', but: input should be 'pydoc' or 'kjv'"),
    ('characters = "', 'characters = "abcdefg "', "holds 1 characters that .vocabulary. lacks, such as 'h'"),
    ('file = "text', "", "one of corpus and file"),
    ('file = "text', 'file = "/etc/hostname"', "text in the folder of the mapping file or below"),
    ('file = "text', 'file = "../text.txt"', "text in the folder of the mapping file or below"),
    ('file = "text', 'file = "absent.txt"', "absent.txt' cannot be read"),
    ('file = "text', 'file = "a\\u0000b"', "cannot be read"),
    ('file = "text', 'file = "."', "should be a file, but is none"),
    ("samples", 'samples = "4"', "'evaluation.samples' is '4'"),
    ("samples", "samples = 4000000000", "'evaluation.samples' is 4000000000"),
    ("samples", "samples = 2000000000", "at most 1048576 tokens in all"),
    ("samples", "samples = 400", "the corpus 'text.txt' has 1080 characters"),
    ("seed", "seed = -1", "'evaluation.seed' is -1"),
    ("tokens = 5", "tokens = 7", "'evaluation.tokens' is 7, but the block takes at most 6"),
    ("tokens = 5", "tokens = 0", "'evaluation.tokens' is 0"),
    ('"tok.weight"', '"tok.wieght" = "wte"', "the block has no weight 'tok.wieght'; did you mean 'tok.weight'"),
    ('"tok.weight"', "", r"\[weights\] lacks tok.weight \[9, 8\]; say where each comes from"),
    ('"tok.weight"', 'tok.weight = "wte"', "no setting 'weights.tok.weight'"),
    ('"tok.weight"', '"tok.weight" = 3', "'weights.tok.weight' is 3"),
    ('"tok.weight"', '"tok.weight" = ""', "'weights.tok.weight.from' is ''"),
    ('"tok.weight"', '"tok.weight" = {}', "one of from and fill"),
    ('"tok.weight"', '"tok.weight" = { form = "wte" }', "no setting 'weights.tok.weight.form'; did you mean 'from'"),
    ('"tok.weight"', '"tok.weight" = { source = "wte" }', "no setting 'weights.tok.weight.source'"),
    ('"tok.weight"', '"tok.weight" = { from = "w", fill = 1.0 }', "one of from and fill"),
    ('"tok.weight"', '"tok.weight" = { fill = 1.0, scale = 2.0 }', "fill stands alone"),
    ('"tok.weight"', '"tok.weight" = { fill = nan }', "'weights.tok.weight.fill' is nan"),
    ('"tok.weight"', '"tok.weight" = { from = "w", scale = inf }', "'weights.tok.weight.scale' is inf"),
    ('"tok.weight"', '"tok.weight" = { from = "w", scale = 0 }', "say fill = 0.0"),
    ('"tok.weight"', '"tok.weight" = { from = "w", rows = [3, 3] }', "first < end"),
    ('"tok.weight"', '"tok.weight" = { from = "w", rows = [-3, 3] }', "'weights.tok.weight.rows.0' is -3"),
    ('"tok.weight"', '"tok.weight" = { from = "w", columns = [3] }', "'weights.tok.weight.columns' is a list of 1"),
    ('"tok.weight"', '"tok.weight" = { from = "w", transpose = 1 }', "'weights.tok.weight.transpose' is 1"),
    ("names", 'names = "unused"', "'ignore.names' is 'unused'"),
    ("names", 'name = ["unused"]', "no setting 'ignore.name'|'ignore.names' is missing"),
    ("[ignore]", '[ignroe]\nx = 1\n[ignore]\nmore = "x"', "no setting 'ignroe'|no setting 'ignore.more'"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[f"{i}-{new[:30]}" for i, (_, new, _) in enumerate(BAD)])
def test_each_wrong_line_has_its_own_sentence(tmp_path, old, new, message):
    refused(tmp_path, with_line(old, new), message)


def test_what_is_no_mapping(tmp_path):
    refused(tmp_path, "", "but is None")
    refused(tmp_path, "a = ", "TOML was expected")
    refused(tmp_path, b"a = '\xff'", "TOML was expected")
    refused(tmp_path, "a = " + "[" * 5000, "nested too deeply")
    refused(tmp_path, "a = '" + "x" * 9000 + "'", "more than 8192 characters")
    refused(tmp_path, "a = 1\n" * 20000, "longer than 65536 bytes")
    for path in (tmp_path / "absent-theirs.toml", tmp_path):
        with pytest.raises(DyneqError, match=r"cannot be read|but is none"):
            read_mapping(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path, MAPPING.replace("text.txt", "pipe.txt"), "should be a file, but is none")
    with pytest.raises(DyneqError, match="should be a file, but is none"):
        read_mapping(tmp_path / "pipe.txt")


def test_filling_is_bounded_before_any_memory_is_taken(tmp_path):
    names = read_mapping(written(tmp_path, MAPPING)).shapes
    entries = "\n".join(f'"{name}" = {{ fill = 1.0 }}' for name in names)
    head, tail = MAPPING.split("[weights]")[0], '[ignore]\nnames = ["*"]\n'
    text = f"{head}[weights]\n{entries}\n{tail}"
    assert read_mapping(written(tmp_path, text)).config["channels"] == 8
    refused(tmp_path, text.replace("channels = 8", "channels = 100000"), "fills .* numbers, but at most 16777216")


# -- fuzzing ----------------------------------------------------------------------------------------------------------

READ_ONLY = {"os.listdir", "os.scandir"}
WATCHED = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.dlopen", "pty.", "tempfile.")
events: list[str] = []
watching = False
#: Where something may be read: Python and its packages, and while a test watches, its own folder.
PYTHON = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2] / "dyneq"))
readable = PYTHON


def _hook(event: str, args: tuple) -> None:
    if not watching:
        return
    opens = event == "open" and not isinstance(args[0], int)
    writes = opens and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    strays = opens and not os.path.abspath(os.fsdecode(args[0])).startswith(readable)
    if writes or strays or (event.startswith(WATCHED) and event not in READ_ONLY):
        events.append(f"{event} {args}")


sys.addaudithook(_hook)


@contextlib.contextmanager
def nothing_touched(folder: Path):
    """Fail if anything is written, removed, started, connected to, or read elsewhere, by what Python itself reports."""
    global watching, readable
    events.clear()
    readable = (*PYTHON, f"{folder}{os.sep}")
    before = sorted(os.listdir(folder))
    watching = True
    try:
        yield
    finally:
        watching = False
    assert events == []
    assert sorted(os.listdir(folder)) == before


class Bomb:
    """Pickles to a call that makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_the_watch_sees_what_it_should(tmp_path):
    for act in (
        lambda: (tmp_path / "new").write_text("x"),
        lambda: os.mkdir(tmp_path / "folder"),
        lambda: torch.load(tmp_path / "bomb.pt", weights_only=False),
        lambda: Path("/etc/passwd").read_text(),
    ):
        torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
        with pytest.raises(AssertionError), nothing_touched(tmp_path):
            act()


def outcome_of(call, *arguments):
    """Return what a call returns, or the DyneqError it raises; anything else it raises is a failure."""
    try:
        return call(*arguments)
    except DyneqError as error:
        return error


def survives(folder: Path, text: bytes) -> bool:
    """Read arbitrary mapping text and import a bomb with it; return whether the mapping was accepted."""
    path = written(folder, text)
    if not (folder / "bomb.pt").exists():
        torch.save({"trainer": {"state": Bomb(folder / "ran")}}, folder / "bomb.pt")
    with nothing_touched(folder):
        mapping = outcome_of(read_mapping, path)
        if isinstance(mapping, DyneqError):
            assert "\n" not in str(mapping)
            assert "theirs.toml" in str(mapping)
            return False
        with pytest.raises(DyneqError, match="mkdir"):
            import_foreign(folder / "bomb.pt", mapping)
    return True


fuzz = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

KEYS = st.sampled_from(
    ["format", "block", "file", "weights", "step", "step_name", "rows", "from", "fill", "kind", "names", "tok.weight"]
) | st.text(max_size=8)
VALUES = st.recursive(
    st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["pydoc", "thick", "/etc/passwd", "../x", "text.txt", "theirs.toml", "{step}", "*", "[!", "os:system"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def toml(value: object) -> str:
    """Return a value as TOML in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    assert isinstance(value, dict)
    return "{" + ", ".join(f"{toml(key)} = {toml(below)}" for key, below in value.items()) + "}"


def document(values: dict) -> bytes:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in values.items()).encode()


def test_the_writer_of_the_fuzz_is_right():
    assert tomllib.loads(document(tomllib.loads(MAPPING)).decode()) == tomllib.loads(MAPPING)


@settings(fuzz, max_examples=100)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes(tmp_path, data):
    assert not survives(tmp_path, data)


@settings(fuzz, max_examples=100)
@given(values=st.dictionaries(KEYS, VALUES, max_size=6))
def test_arbitrary_documents(tmp_path, values):
    assert not survives(tmp_path, document({"format": "dyneq-mapping/1", **values}))


@st.composite
def mutated(draw):
    """The good mapping with one to three values put, replaced or removed anywhere in it."""
    values = tomllib.loads(MAPPING)
    for _ in range(draw(st.integers(1, 3))):
        table = values
        while True:
            key = draw(st.sampled_from(sorted(table)) | KEYS if table else KEYS)
            if isinstance(table.get(key), dict) and draw(st.integers(0, 4)):
                table = table[key]
                continue
            break
        if draw(st.integers(0, 3)):
            table[key] = draw(VALUES)
        else:
            table.pop(key, None)
    return document(values)


@settings(fuzz, max_examples=300)
@given(data=mutated())
def test_mutated_values(tmp_path, data):
    survives(tmp_path, data)


@settings(fuzz, max_examples=150)
@given(
    at=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 30),
    put=st.binary(max_size=6) | st.sampled_from([b"\n", b'"']),
)
def test_mutated_bytes(tmp_path, at, cut, put):
    data = MAPPING.encode()
    place = int(at * len(data))
    survives(tmp_path, data[:place] + put + data[place + cut :])


def test_unharmed_the_mapping_survives(tmp_path):
    assert survives(tmp_path, MAPPING.encode())
    assert survives(tmp_path, document(tomllib.loads(MAPPING)))
    with pytest.raises(UsageError):
        read_mapping(written(tmp_path, "format = 1"))
