"""Reading and writing checkpoint files safely: ``.pt`` (never unpickling code) and ``.safetensors``."""

import hashlib
import io
import json
import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.files import is_folder, write_atomically
from dyneq.systems.checkpoint import FORMAT, Checkpoint
from dyneq.systems.checkpoint_content import OPTIONAL, assemble


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint atomically (temporary file, fsync, rename) and return its SHA-256.

    Args:
        path: A ``.pt`` or ``.safetensors`` file; an existing one is replaced as a whole.
        checkpoint: What to write; the ``.safetensors`` form leaves out the training state.

    Raises:
        DyneqError: If the ending is unknown, a value is not plain, or the file cannot be written.
    """
    path = Path(path)
    unknown = sorted(checkpoint.training.keys() - set(OPTIONAL))
    if unknown:
        raise DyneqError(
            f"the training state of a checkpoint may hold {', '.join(OPTIONAL)}, but holds {unknown}; put other values "
            "into metrics or recipe"
        )
    header = {
        "format": FORMAT,
        "config": checkpoint.block.config.model_dump(),
        "tokenizer": checkpoint.vocabulary.to_plain(),
        "step": int(checkpoint.step),
        "metrics": checkpoint.metrics,
        "recipe": checkpoint.recipe,
    }
    model = {name: w.detach().cpu().contiguous() for name, w in checkpoint.block.state_dict().items()}
    batch = checkpoint.evaluation
    tokens, targets = (
        t.detach().cpu().clone(memory_format=torch.contiguous_format) for t in (batch.tokens, batch.targets)
    )
    if path.suffix == ".pt":
        buffer = io.BytesIO()
        evaluation = {"tokens": tokens, "targets": targets, "source": batch.source}
        torch.save({**header, "model": model, "evaluation": evaluation, **checkpoint.training}, buffer)
        data = buffer.getvalue()
        if foreign := _unsafe_globals(data):  # a numpy scalar among the metrics, say: loading would refuse the file
            raise DyneqError(
                f"a checkpoint holds tensors and plain values only, but this one would hold {', '.join(foreign)}; "
                "convert them with float(), int() or str() first"
            )
    elif path.suffix == ".safetensors":
        from safetensors.torch import save

        tensors = {f"model.{name}": w for name, w in model.items()}
        tensors |= {"evaluation.tokens": tokens, "evaluation.targets": targets}
        header["evaluation"] = {"source": batch.source}
        try:
            text = json.dumps(header)
        except (TypeError, ValueError) as error:
            raise DyneqError(
                f"the header of a safetensors checkpoint holds plain values only ({error}); convert them with float(), "
                "int() or str() first"
            ) from error
        sealed = json.dumps({**header, "sha256": _content_digest(text, tensors)})
        data = save(tensors, metadata={"dyneq": sealed})  # one entry: safetensors orders several at random
    else:
        raise DyneqError(f"a checkpoint file ends in .pt or .safetensors, but {path.name!r} does not; rename it")
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def load_checkpoint(path: str | Path, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint, on the CPU.

    Args:
        path: A ``.pt`` or ``.safetensors`` file.
        trust: Unpickle whatever the file holds. Only for files of your own: it can run any code.

    Raises:
        DyneqError: If the file is missing, damaged, unsafe, of another format, or its weights do not fit.
    """
    path = Path(path)
    data = _bytes(path)
    try:
        held = _read_safetensors(data) if path.suffix == ".safetensors" else _read_pt(data, trust)
        checkpoint = assemble(held)
    except DyneqError as error:  # which may show a value of the file that prints in many lines
        raise DyneqError(f"{path}: {' '.join(str(error).split())}") from None
    checkpoint.path, checkpoint.name = path, path.stem
    checkpoint.sha256 = hashlib.sha256(data).hexdigest()
    return checkpoint


def read_plain(path: str | Path, *, trust: bool = False) -> tuple[object, str]:
    """Return what any file written by ``torch.save`` holds, on the CPU, and the SHA-256 of the file.

    The same safe reading as :func:`load_checkpoint`, of files that need not be checkpoints of ours.

    Args:
        path: The file, whatever it ends in.
        trust: Unpickle whatever the file holds. Only for files of your own: it can run any code.

    Raises:
        DyneqError: If the file is missing, damaged or unsafe.
    """
    path = Path(path)
    data = _bytes(path)
    try:
        return _read_pt(data, trust), hashlib.sha256(data).hexdigest()
    except DyneqError as error:
        raise DyneqError(f"{path}: {error}") from None


def _bytes(path: Path) -> bytes:
    if is_folder(path):
        raise DyneqError(f"{path} is a folder, but a checkpoint file was expected; name the .pt file in it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DyneqError(f"there is no checkpoint file {path}; check the path") from None
    except OSError as error:
        raise DyneqError(f"the checkpoint {path} cannot be read ({error.strerror or error})") from error


def _read_pt(data: bytes, trust: bool) -> object:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        imported = _pickled_globals(data)
        if imported:
            raise DyneqError(
                f"the file is a bare pickle that would import and run {', '.join(imported)}, and it was not unpickled; "
                "a checkpoint is written by dyneq.save_checkpoint"
            )
        raise DyneqError(
            f"a checkpoint written by torch.save was expected, but these {len(data)} bytes are not one or are "
            "truncated; copy the file again"
        )
    _check_archive(data)
    if not trust:
        unsafe = _unsafe_globals(data)
        if unsafe:
            raise DyneqError(
                f"the file would import and run {', '.join(unsafe)} when unpickled, and a checkpoint holds only "
                "tensors and plain values; if you made it and trust it, say --trust"
            )
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=not trust)
    except Exception as error:  # what a malformed pickle makes the unpickler raise has no end
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DyneqError(f"the file is damaged ({first[:200]}); copy it again or take another snapshot") from error


def _check_archive(data: bytes) -> None:
    """Compare every record with its checksum, which torch itself does not: a flipped bit would load as a weight."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        unpacked = sum(record.file_size for record in archive.infolist())
        # torch stores records as they are: more than the file is a compressed one that could fill the memory
        broken = None if unpacked > len(data) else archive.testzip()
    except Exception as error:  # zipfile raises a dozen kinds on damaged records
        raise DyneqError(f"the file is damaged ({type(error).__name__}: {error}); copy it again") from error
    if unpacked > len(data):
        raise DyneqError(
            f"the file is no plain torch.save file (its {len(data)} bytes claim to unpack to {unpacked}); save it "
            "again with torch.save"
        )
    if broken is not None:
        raise DyneqError(f"the file is damaged (the record {broken!r} does not match its checksum); copy it again")


def _pickled_globals(data: bytes) -> list[str]:
    """Return the names a file of bare pickles would import, read off its opcodes without running anything."""
    names: set[str] = set()
    texts: list[str] = []
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):  # the old form of torch.save is several pickles in a row
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":  # module and name are the last two strings, unless memoised
                    names.add(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:
        pass  # not pickles to the end; what was found so far is reported
    return sorted(names)


def _content_digest(header: str, tensors: dict[str, Tensor]) -> str:
    """Digest of a safetensors checkpoint's header and tensors; the format itself has no checksum."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        digest.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unsafe_globals(data: bytes) -> list[str]:
    """Return the names in the pickle that a weights-only load would refuse, without running anything."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:
        return []  # damaged in some other way; the weights-only load below says how


def _read_safetensors(data: bytes) -> object:
    from safetensors.torch import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["dyneq"])
        expected = header.pop("sha256")
    except Exception as error:  # arbitrary bytes: bad JSON, bad lengths, foreign headers
        raise DyneqError(
            f"a safetensors file with a 'dyneq' header was expected, but it is damaged or has none "
            f"({type(error).__name__}: {error}); write it with dyneq.save_checkpoint"
        ) from error
    if _content_digest(json.dumps(header), tensors) != expected:
        raise DyneqError("the file is damaged (its content does not match its SHA-256); copy it again")
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    batch = {key: tensors.get(f"evaluation.{key}") for key in ("tokens", "targets")}
    if isinstance(header.get("evaluation"), dict):
        header["evaluation"] = {**header["evaluation"], **batch}
        header["model"] = model
    return header
