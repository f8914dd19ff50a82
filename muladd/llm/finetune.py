"""Fine-tuning: a model and a file of texts to an adapter, or to a model."""
from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, FormatError, MuladdError
from muladd.formats import safetensors
from muladd.formats.stored import map_file
from muladd.llm import dataset, merge
from muladd.llm.adapters import WEIGHTS, Adapter, LoRA
from muladd.llm.checks import check_number
from muladd.llm.dataset import Rows
from muladd.llm.model import Decoder
from muladd.llm.opening import Opened, opened
from muladd.llm.training import Step, Training, optimizer
from muladd.llm.weights import sizes
from muladd.signals import held
from muladd.tensor import Tensor, no_grad

STATE = "training_state.safetensors"


@dataclass(frozen=True)
class Settings:
    """How to train. Without `lora`, all weights are trained.

    A step reads `batch` rows of `length` tokens, `accumulate` times. `epochs` are passes over the
    data; `steps`, if given, is how many steps there are instead. `rate` is the greatest learning
    rate (None: 2e-4 for adapters, 2e-5 for all weights), reached after `warmup` (a part of all
    steps). `validation` is the part of the examples that is not trained on, but measured. `kind` is
    what a GGUF file's matrices are quantised to if all weights are trained (None: each keeps its
    own). Without `recompute` a step takes about a quarter less time, and much more memory.
    """

    lora: LoRA | None = LoRA()
    length: int = 512
    batch: int = 1
    accumulate: int = 8
    epochs: int = 1
    steps: int | None = None
    rate: float | None = None
    warmup: float = 0.05
    decay: float = 0.0
    clip: float = 1.0
    pack: bool = True
    long: str = "error"
    validation: float = 0.1
    seed: int = 0
    save_every: int = 50  # steps
    kind: str | None = None
    recompute: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "epochs", "save_every"):
            check_number("finetune", name, getattr(self, name), 1)
        if self.steps is not None:
            check_number("finetune", "steps", self.steps, 1)
        check_number("finetune", "seed", self.seed, 0)
        for name in ("warmup", "validation"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ArgumentError(f"finetune: {name} is {value!r:.40}; expected a part of the "
                                    "whole, 0 to below 1")  # fmt: skip
        for name in ("decay", "clip"):
            check_number("finetune", name, getattr(self, name), 0, whole=False)

    @property
    def peak_rate(self) -> float:
        """The greatest learning rate."""
        return (2e-5 if self.lora is None else 2e-4) if self.rate is None else self.rate


@dataclass(frozen=True)
class Progress:
    """What is known after a step: `loss` is the mean over its targets, `norm` that of the gradient
    before it is clipped; `rate` is tokens per second of this step, `seconds` since the start."""

    step: int
    steps: int
    loss: float
    norm: float
    rate: float
    seconds: float
    validation: float | None = None


Report = Callable[[Progress], None]


def run(
    model: str | os.PathLike[str], data: str | os.PathLike[str], output: str | os.PathLike[str],
    settings: Settings | None = None, *, resume: bool = False, overwrite: bool = False,
    report: Report = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Train and save; gives the figures. `model` as for `llm.load`; `output` is a folder.

    An adapter is saved as the `peft` package does; all weights as a model like the one given
    (`model.gguf`, or a folder's files). Each `save_every` steps, and at KeyboardInterrupt or
    SystemExit, everything that goes on is saved too: with `resume`, training goes on from there, to
    the same result as without the interruption. Raises what `llm.load` and `dataset.read` do,
    ArgumentError for settings out of range, and for an output that is there already (unless it is
    to `overwrite` it), FormatError for a state of another training.
    """
    settings = settings or Settings()
    source = opened(model)
    _check_output(source.path, Path(output), settings, resume, overwrite)
    training = _Run(source, os.fspath(model), Path(data), Path(output), settings, report)
    return training.run(resume)


def _check_output(
    model: Path, output: Path, settings: Settings, resume: bool, overwrite: bool
) -> None:
    """Before the work, not after it."""
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"finetune: {output} is a file; expected a folder to write to")
    to = output / WEIGHTS
    if settings.lora is None:
        to = merge.target(model, output if model.is_dir() else output / "model.gguf")
    begun = (output / STATE).exists()
    if begun and not (resume or overwrite):
        raise ArgumentError(f"finetune: {output} holds a training that was interrupted; --resume "
                            "goes on with it, --overwrite begins anew")  # fmt: skip
    merge.check_free(to, overwrite or begun, "finetune")
    if resume and not begun:
        raise ArgumentError(f"finetune: {output} holds no training to go on with; begin one "
                            "without --resume")  # fmt: skip


class _Run:
    def __init__(
        self, source: Opened, model: str, data: Path, output: Path, settings: Settings,
        report: Report,
    ) -> None:  # fmt: skip
        self.source, self.model, self.output = source, model, output
        self.settings, self.report = settings, report
        s = settings
        if source.tokenizer is None:
            raise ArgumentError(f"finetune: {model} came without a tokenizer; texts need one")
        if not 2 <= s.length <= source.config.context:
            raise ArgumentError(f"finetune: length is {s.length}; this model was trained for 2 to "
                                f"{source.config.context} tokens")  # fmt: skip
        if s.kind is not None and (s.lora is not None or source.path.is_dir()):
            raise ArgumentError(f"finetune: kind is {s.kind!r:.40}, which is for all weights of a "
                                "GGUF file; adapters are merged with a kind")  # fmt: skip
        merge.check_kind(s.kind)
        examples = dataset.read(data, source.tokenizer, s.length, s.long)
        self.train, self.check = _split(examples, s)
        decoder = Decoder(source.config, source.tensors, s.length)
        adapter = None if s.lora is None else Adapter.new(decoder, s.lora, s.seed)
        self.training = Training(decoder, adapter, s.recompute)
        self.per_epoch = -(-len(self.train) // (s.batch * s.accumulate))
        self.steps = s.epochs * self.per_epoch if s.steps is None else s.steps
        self.optimizer = optimizer(self.training, s.peak_rate, self.steps,
                                   round(s.warmup * self.steps), s.decay)  # fmt: skip
        self.step = Step(self.training, self.optimizer, s.clip, s.accumulate)
        self.identity = {
            "data": hashlib.sha256(map_file(data, "data")).hexdigest(),
            "settings": json.dumps(asdict(settings), sort_keys=True),
        }

    def run(self, resume: bool) -> dict[str, Any]:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FormatError(f"finetune: cannot write to {self.output}: {error.strerror}") \
                from None  # fmt: skip
        self.begun = self.done = self._resumed() if resume else 0
        started, losses, rates = time.perf_counter(), [], []
        before = after = self._validated()
        try:
            for number in range(self.done, self.steps):
                begun = time.perf_counter()
                loss, norm, tokens = self._one(number)
                done, now = self.done, time.perf_counter()
                losses.append(loss)
                rates.append(tokens / (now - begun))
                if done % self.per_epoch == 0 or done == self.steps:
                    after = self._validated()
                self.report(Progress(done, self.steps, loss, norm, rates[-1], now - started, after))
                if done % self.settings.save_every == 0 and done < self.steps:
                    self._save_state()
            seconds = time.perf_counter() - started
            written = self._save()
        except (KeyboardInterrupt, SystemExit):
            if self.done > self.begun:
                self._save_state()
            raise
        (self.output / STATE).unlink(missing_ok=True)
        return {
            "steps": self.steps, "losses": losses, "validation_before": before,
            "validation_after": after, "seconds": seconds,
            "tokens_per_second": float(np.median(rates)) if rates else 0.0,
            "rows": len(self.train), "learnt_tokens": self.train.learnt,
            "trained": sum(math.prod(sizes(t)) for t in self.training.parameters.values()),
            "output": str(written),
        }  # fmt: skip

    def _one(self, number: int) -> tuple[float, float, int]:
        """A step; gives the mean loss over its targets, the gradient's norm, how many tokens."""
        s = self.settings
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.default_rng((s.seed, epoch)).permutation(len(self.train))
        size = s.batch * s.accumulate
        chosen = self.train.chosen(order[place * size : (place + 1) * size], size)
        share = 1 / max(1, chosen.learnt)
        Tensor.manual_seed(s.seed * 1_000_003 + number)  # so that dropout can be resumed
        total, norm = 0.0, 0.0
        for k, batch in enumerate(_batches(chosen, s.batch)):
            compiles = number == self.begun and not k  # which takes long, and may be stopped
            with nullcontext() if compiles else held():  # weights change together with `done`
                loss, norm = self.step(batch, share, k == 0, k == s.accumulate - 1)
                self.done = number + (k == s.accumulate - 1)
            total += loss
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise MuladdError(f"finetune: after step {number} the loss is {total} and its "
                              f"gradient's norm {norm}; give a lower rate")  # fmt: skip
        return total, norm, int((chosen.texts >= 0).sum())

    def _validated(self) -> float | None:
        """The mean loss of what is not trained on."""
        if not self.check.learnt:
            return None
        rows = -(-len(self.check) // self.settings.batch) * self.settings.batch
        everything = self.check.chosen(np.arange(len(self.check)), rows)
        losses = [self.step.loss(batch) for batch in _batches(everything, self.settings.batch)]
        return sum(losses) / self.check.learnt

    # --- what is kept ----------------------------------------------------------------------------

    def _save(self) -> Path:
        if self.training.adapter is not None:
            self.training.adapter.save(self.output, self.model)
            return self.output
        weights = self.training.parameters
        changes = {name: partial(_replaced, tensor) for name, tensor in weights.items()}
        return merge.write(self.source, self.output, changes, self.settings.kind)

    def _state(self) -> dict[str, Tensor]:
        found = {f"weights.{name}": t for name, t in self.training.parameters.items()}
        return found | {f"optimizer.{n}": t for n, t in self.optimizer.state_dict().items()}

    def _save_state(self) -> None:
        told = {**self.identity, "step": str(self.done)}
        safetensors.save(self._state(), self.output / STATE, told)

    def _resumed(self) -> int:
        """The steps that were done before."""
        path = self.output / STATE
        found = safetensors.open_file(path)
        for name, wanted in self.identity.items():
            if found.metadata.get(name) != wanted:
                raise FormatError(f"finetune: {path} is of a training with other {name}; resume "
                                  "with the same, or without --resume begin anew")  # fmt: skip
        own = self._state()
        if found.keys() != own.keys():
            raise FormatError(f"finetune: {path} is of another model; resume with the same")
        with no_grad():
            for name, tensor in self.training.parameters.items():
                tensor.assign(Tensor(found[f"weights.{name}"].numpy()))
        prefix = "optimizer."
        self.optimizer.load_state_dict({n.removeprefix(prefix): found[n].numpy()
                                        for n in found if n.startswith(prefix)})  # fmt: skip
        return int(found.metadata.get("step", "0"))


def _replaced(tensor: Tensor, _: np.ndarray) -> np.ndarray:
    return tensor.numpy()


def _split(examples: list[dataset.Example], s: Settings) -> tuple[Rows, Rows]:
    """(to train on, to measure), the same for a seed."""
    order = np.random.default_rng((s.seed, 1 << 20)).permutation(len(examples))
    kept = round(s.validation * len(examples))
    kept = min(max(kept, 1), len(examples) - 1) if s.validation and len(examples) > 1 else 0
    measured = [examples[i] for i in order[:kept]]
    trained = [examples[i] for i in order[kept:]]
    return (dataset.rows(trained, s.length, s.pack), dataset.rows(measured, s.length, s.pack))


def _batches(found: Rows, size: int) -> Iterator[tuple[Tensor, ...]]:
    for i in range(0, len(found), size):
        arrays = (found.ids, found.targets, found.positions, found.texts)
        yield tuple(Tensor(a[i : i + size]) for a in arrays)


__all__ = ["LoRA", "Progress", "Settings", "run"]
