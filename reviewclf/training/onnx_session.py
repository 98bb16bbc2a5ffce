"""An exported encoder behind ONNX Runtime and its tokenizer: texts in, one row of numbers a text out. Needs no torch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.training.parts import reading
from reviewclf.training.rows import Floats, Integers

logger = logging.getLogger(__name__)

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"

# Padded tokens of one batch: seen fastest here for encoders of 3 and of 12 layers, whose states then stay in the cache.
_BATCH_TOKENS = 1024
_MAX_THREADS = 4
# Sum and layer normalisation as one operation: on the CPU it is not vectorised and takes five times as long as the two.
_SLOWER_FUSIONS = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]
# The operation by which an 8-bit model finds the scale of what it is given, over all of it.
_SCALES_ITS_INPUT = b"DynamicQuantizeLinear"
# The key under which a model names a file with its weights. Ours hold their weights themselves; one that names a file could
# make the reader open any file of the machine.
_EXTERNAL = b"location"

# Runs an encoder on the arrays ``input_ids`` and ``attention_mask`` of one batch.
Run = Callable[[Mapping[str, Integers]], NDArray[Any]]


class TextReader:
    """Texts as an encoder reads them: batches of token ids.

    Parameters
    ----------
    content : str
        Of ``tokenizer.json``.
    pad_id : int
        Token that fills up the shorter texts of a batch.
    max_length : int
        Tokens after which a text is cut off.

    Raises
    ------
    ValueError
        `content` is no tokenizer.
    """

    def __init__(self, content: str, *, pad_id: int, max_length: int) -> None:
        from tokenizers import Tokenizer

        self.content = content
        self.pad_id = pad_id
        self.max_length = max_length
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the package raises bare Exception
            raise ValueError(f"{TOKENIZER}: is no tokenizer ({error!r:.200})") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    @classmethod
    def of(cls, tokenizer: Any, *, max_length: int) -> TextReader:
        """Reads as a tokenizer of Transformers does.

        Raises
        ------
        TrainingError
            It is no fast one, or has no padding token.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.pad_token_id is None:
            missing = "padding token" if backend is not None else "tokenizer.json"
            name = getattr(tokenizer, "name_or_path", "tokenizer")
            raise TrainingError(f"{name}: has no {missing}; choose another checkpoint")
        return cls(backend.to_str(), pad_id=int(tokenizer.pad_token_id), max_length=max_length)

    def batches(self, texts: Sequence[str], *, tokens: int = _BATCH_TOKENS) -> Iterator[tuple[Integers, dict[str, Integers]]]:
        """Texts of similar length together, so that little is padded.

        Yields
        ------
        rows, inputs
            Positions in `texts`, and the arrays ``input_ids`` and ``attention_mask`` of shape (rows, longest of them); `tokens`
            numbers at most, or one text.
        """
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= tokens:
                stop += 1
            rows = order[start:stop]
            ids = np.full((len(rows), max(1, int(lengths[rows[-1]]))), self.pad_id, dtype=np.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = encoded[row]
            mask = (np.arange(ids.shape[1]) < lengths[rows, None]).astype(np.int64)
            yield rows, {"input_ids": ids, "attention_mask": mask}
            start = stop

    def answers(self, run: Run, texts: Sequence[str], *, tokens: int = _BATCH_TOKENS, apply: Any = map) -> Floats:
        """What `run` answers to n texts, at least one: array of shape (n, width), in the order of `texts`."""
        rows, inputs = zip(*self.batches(texts, tokens=tokens), strict=True)
        answers = np.concatenate(list(apply(run, inputs)))
        return answers[np.argsort(np.concatenate(rows))].astype(np.float64)


class EncoderFiles(BaseModel, frozen=True, extra="forbid"):
    """What the model card holds about ``model.onnx`` and ``tokenizer.json``: how texts are read, and either file's digest."""

    pad_id: int
    max_length: PositiveInt
    sha256: dict[str, str]


class OnnxEncoder:
    """Runs an exported encoder.

    An 8-bit one scales its numbers by all it is given at once, so that an answer would depend on the texts beside it: of
    e5-small-ru's labels 1 % would change. It gets each text alone, several side by side where there are threads.

    Parameters
    ----------
    model : bytes
        ONNX file with inputs ``input_ids`` and ``attention_mask`` and one output of shape (n, width).
    reader : TextReader
        How it reads texts.
    threads : int, optional
        Threads of one call; default: the physical cores, at most 4.

    Attributes
    ----------
    alone : bool
        Whether each text goes through it alone.

    Raises
    ------
    ValueError
        The model is none; the message begins with the name of its file.
    """

    def __init__(self, model: bytes, reader: TextReader, *, threads: int | None = None) -> None:
        self.model = model
        self.reader = reader
        self.alone = _SCALES_ITS_INPUT in model
        self._threads = threads or default_threads()
        self._session = _open_session(model, 1 if self.alone else self._threads)
        (self._output,) = self._session.get_outputs()

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Output rows of n texts: array of shape (n, width), in the order of `texts`."""
        if not texts:
            return np.empty((0, self._output.shape[1]))
        side_by_side = self.alone and self._threads > 1 and len(texts) > 1
        tokens = 1 if self.alone else _BATCH_TOKENS
        return self.reader.answers(self.run, texts, tokens=tokens, apply=self._pool.map if side_by_side else map)

    def run(self, inputs: Mapping[str, Integers]) -> NDArray[np.float32]:
        """Output rows of one batch."""
        return self._session.run([self._output.name], inputs)[0]  # type: ignore[no-any-return]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="encoder")

    def save(self, folder: Path) -> EncoderFiles:
        """Write ``model.onnx`` and ``tokenizer.json``."""
        contents = {MODEL: self.model, TOKENIZER: self.reader.content.encode("utf-8")}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        return EncoderFiles(pad_id=self.reader.pad_id, max_length=self.reader.max_length, sha256=digests)

    @classmethod
    def load(cls, folder: Path, files: object, *, threads: int | None = None) -> OnnxEncoder:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        files : object
            The dump of what :meth:`save` returned.

        Raises
        ------
        ValidationError
            `files` is no such dump.
        RegistryError
            A file is missing, damaged or another one than was saved, or is no model of this kind; the message names it.
        """
        known = EncoderFiles.model_validate(files)
        contents = {}
        for name in (MODEL, TOKENIZER):
            with reading(folder / name):
                contents[name] = (folder / name).read_bytes()
            if hashlib.sha256(contents[name]).hexdigest() != known.sha256.get(name):
                raise RegistryError(f"{folder / name}: is damaged or was replaced (not the saved content); train it anew")
        try:
            # What is no text is then no tokenizer, and is refused as such.
            tokenizer = contents[TOKENIZER].decode("utf-8", errors="replace")
            reader = TextReader(tokenizer, pad_id=known.pad_id, max_length=known.max_length)
            return cls(contents[MODEL], reader, threads=threads)
        except ValueError as error:
            raise RegistryError(f"{folder}/{error}; train the classifier anew") from error


def softmax(logits: Floats) -> Floats:
    """Rows of logits, shape (n, k), to rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def default_threads() -> int:
    """Physical cores that this process may use, at most 4: more gain little on short texts and hinder other processes."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed, _MAX_THREADS))


def multiplies_int8_exactly() -> bool:
    """Whether the processor sums products of 8-bit numbers without overflow (VNNI on x86; all 64-bit Arm ones do).

    Without it sums of two products are cut off at 16 bits; models for such machines have to use 7 bits of a weight.
    """
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return os.uname().machine in {"arm64", "aarch64"} if hasattr(os, "uname") else False
    return "vnni" in described or "asimd" in described


def warn_of_other_processor(exported: Any, folder: Path) -> None:
    """Log when an 8-bit model that uses all bits of its weights is to run on a processor that cannot."""
    if str(exported.get("served")).startswith("int8") and not exported.get("seven_bits") and not multiplies_int8_exactly():
        logger.warning(
            "%s: the 8-bit model was made for processors with VNNI, which this one lacks; answers will be worse. "
            "Train on this machine, or with precision: fp32",
            folder,
        )


def _open_session(model: bytes, threads: int) -> Any:
    """Start ONNX Runtime on a model that has the two inputs and one output of an encoder.

    Raises
    ------
    ValueError
        It has not, refers to other files, or is no model at all.
    """
    import onnxruntime  # type: ignore[import-untyped]

    if _EXTERNAL in model:
        raise ValueError(f"{MODEL}: refers to weights in other files, which no saved classifier does; it is not loaded")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised as well
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER_FUSIONS
        )
    except Exception as error:  # each fault of a model has its own exception there
        raise ValueError(f"{MODEL}: is no model that ONNX Runtime reads ({error!r:.200})") from error
    inputs = {(item.name, item.type, len(item.shape)) for item in session.get_inputs()}
    wanted = {("input_ids", "tensor(int64)", 2), ("attention_mask", "tensor(int64)", 2)}
    outputs = [(item.type, len(item.shape)) for item in session.get_outputs()]
    if inputs != wanted or outputs != [("tensor(float)", 2)]:
        raise ValueError(f"{MODEL}: is no encoder: inputs {sorted(inputs)}, outputs {outputs}")
    return session
