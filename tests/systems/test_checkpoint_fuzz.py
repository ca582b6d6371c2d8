"""Checkpoints whose pickle is sound but whose content is arbitrary: a checkpoint or one sentence, and nothing runs."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint, read_plain, save_checkpoint

fuzz = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

KEYS = st.sampled_from(["format", "config", "model", "kind", "heads", "tokens", "source", "symbols"]) | st.text(
    max_size=5
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int8, torch.complex64, torch.bool]),
)
# integers stay small: one of them may become a size of the block
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5) | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def plain(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "good.pt", checkpoint)
    return read_plain(tmp_path / "good.pt")[0]


def copied(value):
    return {key: copied(below) for key, below in value.items()} if isinstance(value, dict) else value


def loaded(path):
    try:
        return load_checkpoint(path)
    except DyneqError as error:
        return error


@fuzz
@given(data=st.data())
def test_arbitrary_values_anywhere(tmp_path, plain, data):
    changed = copied(plain)
    for _ in range(data.draw(st.integers(1, 3))):
        table = changed
        key = data.draw(st.sampled_from(sorted(table)) | KEYS)
        while isinstance(table.get(key), dict) and table[key] and data.draw(st.integers(0, 4)):
            table = table[key]
            key = data.draw(st.sampled_from(sorted(table, key=str)) | KEYS)
        if data.draw(st.integers(0, 3)):
            table[key] = data.draw(VALUES)
        else:
            table.pop(key, None)
    torch.save(changed, tmp_path / "c.pt")
    outcome = loaded(tmp_path / "c.pt")
    if isinstance(outcome, DyneqError):
        assert "\n" not in str(outcome)
        assert "c.pt" in str(outcome)
    else:  # what was accepted is what the file says, and can be used
        assert isinstance(outcome, Checkpoint)
        assert all(torch.equal(w, changed["model"][name]) for name, w in outcome.block.state_dict().items())
        assert torch.equal(outcome.evaluation.tokens, changed["evaluation"]["tokens"])
        assert outcome.bind(1).initial_state().ndim == 3
    assert sorted(os.listdir(tmp_path)) == ["c.pt", "good.pt"]


@fuzz
@given(held=VALUES)
def test_arbitrary_values_alone(tmp_path, held):
    torch.save(held, tmp_path / "c.pt")
    assert isinstance(loaded(tmp_path / "c.pt"), DyneqError)
    back, digest = read_plain(tmp_path / "c.pt")
    assert type(back) is type(held)
    assert len(digest) == 64
