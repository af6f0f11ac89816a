"""A DreamBooth run as a job of the training loop: its loss, its progress, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..bases.family import Conditions, Family
from ..bases.identity import difference
from ..bases.loading import Base
from ..bases.noise import NoiseProcess, denoising_loss
from ..bases.offloading import keeping_little
from ..core.adapter import Adapter
from ..core.launch import LaunchReport
from ..core.loading import probe_weight
from ..core.weights import kind_of
from ..files.atomic import FolderLock
from ..files.checkpoint import load_checkpoint
from ..files.errors import InputError
from ..runs.evaluation import Evaluation
from ..runs.gradients import untrained_sentence
from ..runs.journal import Journal
from ..runs.loop import Training
from ..runs.runtime import Runtime
from .checkpoints import checkpoint_path, write_checkpoint
from .latents import Batch, Example, Order, draw_batch, join
from .long_prompts import join_chunks
from .plan import Plan

_SPLIT = ("train_batch_size", "gradient_accumulation_steps")  # with the processes, how a step's batch is split
# The flag that a part of a base depends on first; the others come with the base.
_SAID_BY = {
    "vae": "--pretrained_vae_model_name_or_path",
    "noise process": "--prediction_type, --zero_terminal_snr and base",
}


def predict(family: Family, network: nn.Module, process: NoiseProcess, batch: Batch, conditions: Conditions) -> Tensor:
    """What the denoiser says of a batch's noisy pictures. network: as it is called; all is on its device."""
    noisy = process.noisy(batch.latents, batch.noise, batch.times)
    return family.denoise(network, noisy, batch.times, conditions)


def loss_of(
    family: Family,
    network: nn.Module,
    process: NoiseProcess,
    batch: Batch,
    conditions: Conditions,
    of_base: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, a scalar. network: the denoiser, as it is called; the other arguments are on its device.
    of_base: what the frozen base says of `batch.of_base()`, which the denoiser is to say too."""
    target = process.target(batch.latents, batch.noise, batch.times)
    if of_base is not None:
        target = torch.cat([target[: len(target) - len(of_base)], of_base.to(target.dtype)])
    predicted = predict(family, network, process, batch, conditions)
    return denoising_loss(predicted, target, process.weights(batch.times) * batch.share).sum()


@dataclass(frozen=True)
class HeldOut:
    """A picture that is not learned from, whole, encoded, and with the prompt that describes it."""

    image: Image.Image
    example: Example


@dataclass(frozen=True)
class Material:
    """What is learned from. inputs: the pictures. examples, class_examples: them and the class pictures, encoded.
    conditions: by prompt; what family.tokenize gives where text encoders are trained. heldout: what the run is measured
    on, from the folder heldout_folder; heldout_digest: of its files."""

    inputs: list[Image.Image]
    examples: list[Example]
    class_examples: list[Example]
    conditions: dict[str, Any]
    heldout: list[HeldOut] = field(default_factory=list)
    heldout_folder: str = ""
    heldout_digest: str = ""


@dataclass
class DreamBoothJob:
    """What runs.loop.train trains. setup.prepare makes it.

    adapters, networks: by component, the denoiser first; networks as they are called, over all processes. probes: of
    the frozen weights. say: prints a line for the user, on the main process. timings: seconds.
    started: by the clock on the wall. journal: where the run tells how far it is. evaluation: what was measured so far.
    """

    plan: Plan
    base: Base
    material: Material
    process: NoiseProcess
    adapters: dict[str, Adapter]
    networks: dict[str, nn.Module]
    training: Training
    runtime: Runtime
    say: Callable[[str], None]
    lock: FolderLock | None = None
    journal: Journal = field(default_factory=lambda: Journal(None))
    timings: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        settings, batch_size = self.plan.settings, self.plan.train_batch_size
        self.order = Order(self.material.examples, batch_size, settings.seed, "instance")
        self.class_order = Order(self.material.class_examples, batch_size, settings.seed, "class")
        self.probes = {n: {m: probe_weight(x) for m, x in a.layers.items()} for n, a in self.adapters.items()}
        self._bar: tqdm | None = None
        self._clock, self._first = time.perf_counter(), 0  # when, and at which step, this process began to train

    # -- the loss

    def loss(self, batch: int) -> Tensor:
        """The loss of this process's share of batch number `batch`, a scalar: instance pictures, class pictures under
        prior preservation, and the instance pictures under the class prompt where the class is preserved."""
        self._show(batch // self.training.accumulation)
        losses = [self.loss_over(part) for part in self.batches(batch)]
        return sum(losses[1:], losses[0])

    def batches(self, number: int) -> list[Batch]:
        """What this process sees of batch number `number`, by one forward pass each."""
        share = number * self.runtime.world + self.runtime.rank
        m, s = self.material, self.plan.settings
        offset, others = s.noise_offset or 0.0, list[Batch]()
        batch = subject = draw_batch(self.base, m.examples, self.order, share, self.process, 1.0, offset)
        if m.class_examples:
            weight = s.prior_loss_weight
            other = draw_batch(self.base, m.class_examples, self.class_order, share, self.process, weight, offset)
            if batch.latents.shape[1:] == other.latents.shape[1:]:
                batch = join(batch, other)
            else:
                others.append(other)
        if s.preserve_class:
            prompts = [self.plan.prompts.of_class(prompt) for prompt in subject.prompts]
            batch = join(batch, subject.preserving(prompts, s.preserve_class_weight))
        return [batch, *others]

    def loss_over(self, batch: Batch) -> Tensor:
        """The loss of a batch that is on the CPU, a scalar."""
        batch = batch.to(self.runtime.device)
        network = self.networks[self.base.family.denoiser]
        of_base = self.of_base(batch.of_base()) if batch.kept else None
        with self.runtime.autocast(), keeping_little(network):
            return loss_of(self.base.family, network, self.process, batch, self._conditions(batch), of_base)

    @torch.no_grad()
    def of_base(self, batch: Batch) -> Tensor:
        """What the frozen base says of a batch on its device, told by text encoders that are as frozen."""
        network = self.networks[self.base.family.denoiser]
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.left_out())
            # Not inside the training's autocast, which would go on with weights that were cast here, without gradients.
            stack.enter_context(self.runtime.autocast())
            return predict(self.base.family, network, self.process, batch, self._conditions(batch))

    def _conditions(self, batch: Batch) -> Conditions:
        family = self.base.family
        entries = [self.material.conditions[prompt] for prompt in batch.prompts]
        if not self.plan.settings.train_text_encoder:
            return family.join(entries) | batch.pictures
        encoders = [self.networks[name] for name in family.trained_encoders]
        ids = [torch.cat(parts) for parts in zip(*entries, strict=True)]
        told = family.encode_tokens(encoders, ids, self.base.prompt_options)
        return join_chunks(told, self.plan.chunks) | batch.pictures

    # -- progress

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A bar of the steps while inside."""
        launched = self.training.schedule is not None and self.training.schedule.launched
        phase = "dash" if launched else "pre-launch" if self.plan.settings.dash_k else "LoRA"
        self._clock, self._first = time.perf_counter(), self.training.step
        with tqdm(
            total=self.plan.max_train_steps,
            initial=self.training.step,
            desc=phase,
            disable=not self.runtime.main,
            dynamic_ncols=True,
        ) as self._bar:
            yield
        self._bar = None

    def _show(self, step: int) -> None:
        self.journal.step(step, self.plan.max_train_steps)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, first: int, losses: Sequence[float], rate: float) -> None:
        """Show and track the losses of the steps from number `first` (counted from 1) on; tell of a launch."""
        for step, value in enumerate(losses, first):
            self.runtime.log({"loss": value, "lr": rate}, step)
        launch, last = self.training.launch, first + len(losses) - 1
        self.journal.write(step=last, total=self.plan.max_train_steps, losses=[round(value, 6) for value in losses])
        if launch is not None and first <= launch["step"]:
            self._tell_launch(launch)
        if self._bar is None:
            return
        settings = self.plan.settings
        a_step = settings.gradient_accumulation_steps * self.plan.train_batch_size * self.runtime.world
        each = (time.perf_counter() - self._clock) / max(1, last - self._first)  # seconds
        speed = a_step / max(1e-9, each)
        self._show(last)
        self._bar.set_postfix_str(
            f"loss {sum(losses) / len(losses):.4f}, lr {rate:.1e}, {each:.2g} s a step, {speed:.1f} images/s"
        )

    def tell(self, line: str) -> None:
        """Print a line for the user above the bar of the steps, if there is one."""
        if self._bar is not None and self.runtime.main:
            self._bar.write(line)
        else:
            self.say(line)

    def _tell_launch(self, launch: dict[str, Any]) -> None:
        self.journal.write(launch=launch["step"])
        report = LaunchReport(**{key: value for key, value in launch.items() if key != "step"})
        if self._bar is not None:
            self._bar.set_description_str("dash")
            self.tell(f"step {launch['step']}: {report}")

    def untrained(self, names: Sequence[str], unused: bool) -> None:
        """Say which tensors are not trained."""
        self.say(f"warning: {untrained_sentence(names, unused)}")

    # -- checkpoints

    def save(self) -> None:
        """Write checkpoint-STEP.safetensors; of a split model every process gives its part."""
        state = self._state() if self.runtime.main or self.runtime.sharded else {}
        if self.runtime.main:
            write_checkpoint(self.plan.output, self.training.step, state, self.plan.settings.checkpoints_total_limit)
        self.runtime.wait()

    @property
    def checkpoint(self) -> Path:
        """The file that `save` writes after the present step."""
        return checkpoint_path(self.plan.output, self.training.step)

    def _state(self) -> dict[str, Any]:
        return {
            "processes": self.runtime.world,
            "settings": self._identity(),
            "base": self.base.identity(),
            "adapters": {name: adapter.state_dict(("A", "B")) for name, adapter in self.adapters.items()},
            "native": {name: self._described(name, adapter) for name, adapter in self.adapters.items()},
            "training": self.training.state_dict(self.runtime),
            "timings": self.timings,
        }

    def _described(self, name: str, adapter: Adapter) -> dict[str, Any]:
        """What a native file says of an adapter beside its tensors."""
        return {
            "config": adapter.config.to_dict(),
            "kinds": {module: kind_of(layer.base) for module, layer in adapter.layers.items()},
            "probes": self.probes[name],
            "bypassed": [module for module, layer in adapter.layers.items() if layer.bypassed],
        }

    def _identity(self) -> dict[str, Any]:
        pictures = [[e.name, len(e.views), e.prompt, e.repeats] for e in self.material.examples]
        return self.plan.identity() | {"mixed_precision": self.runtime.precision, "instance_data": pictures}

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises InputError when it is damaged or of another run."""
        state = load_checkpoint(path)
        try:
            self._compare(path, state)
            for name, adapter in self.adapters.items():
                adapter.load_state_dict({**adapter.state_dict(), **state["adapters"][name]})
            self.training.load_state_dict(state["training"], self.runtime)
            self._tell_split(path, state)
            self.timings = dict(state["timings"])
        except InputError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise InputError(f"{path} does not fit this run ({error}); use another checkpoint or start anew") from None

    def _tell_split(self, path: Path, state: dict[str, Any]) -> None:
        if state["processes"] == self.runtime.world:
            return
        kind = "the same batches, split otherwise" if self._same_batches(state) else "other batches than before"
        self.say(
            f"note: {path} was written by {state['processes']} processes, this run has {self.runtime.world}: it goes "
            f"on with {kind}"
        )

    def _compare(self, path: Path, state: dict[str, Any]) -> None:
        """Raises InputError where a checkpoint's settings, pictures or base are not those of this run."""
        done = state["training"]["step"]
        if done > self.plan.max_train_steps:
            raise InputError(
                f"{path} has {done} steps, --max_train_steps is {self.plan.max_train_steps}; give at least {done}, or "
                "--overwrite to start anew"
            )
        was, now = state["settings"], self._identity()
        if self._same_batches(state):
            now = {name: value for name, value in now.items() if name not in _SPLIT}
        if done == self.plan.max_train_steps:
            now.pop("max_train_steps", None)  # nothing is trained any more, at whatever rate
        for name, value in now.items():
            if name == "instance_data" and was.get(name) != value:
                raise InputError(
                    f"the pictures or captions in {self.plan.settings.instance_data_dir} are not those that {path} was "
                    "trained on; put them back, give the same --holdout, which keeps some of them out, or --overwrite "
                    "to start anew"
                )
            if was.get(name) != value and name == "max_train_steps":
                raise InputError(
                    f"{path} is of a run of --max_train_steps {was.get(name)}, on which its learning rate depends "
                    f"(--lr_scheduler {self.plan.lr_scheduler}), and this run has {value}; give the same number to go "
                    "on, or --overwrite to start anew"
                )
            if was.get(name) != value:
                raise InputError(
                    f"{path} was trained with --{name} {was.get(name)}, this run has {value}; give the same value to "
                    "go on, or --overwrite to start anew"
                )
        part = difference(state["base"], self.base.identity())
        if part is not None:
            raise InputError(
                f"{path} was trained on another base (its {part} differs); give the same "
                f"{_SAID_BY.get(part, '--pretrained_model_name_or_path and its options')} to go on, or --overwrite to "
                "start anew"
            )

    def _same_batches(self, state: dict[str, Any]) -> bool:
        """Whether each optimizer step of this run has the pictures and the noise that it had in the run of `state`.

        They follow from the size of the whole batch, however it is split; but pictures of several sizes are drawn by
        the --train_batch_size.
        """
        was, now = state["settings"], self._identity()
        sizes = [values["train_batch_size"] * values["gradient_accumulation_steps"] for values in (was, now)]
        whole_batches = sizes[0] * state["processes"], sizes[1] * self.runtime.world
        one_size = not self.plan.settings.aspect_ratio_buckets
        return (one_size or was["train_batch_size"] == now["train_batch_size"]) and whole_batches[0] == whole_batches[1]

    # -- the end

    def close(self) -> None:
        """Let other runs have the output folder."""
        if self.lock is not None:
            self.lock.release()

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds inside to `timings`."""
        start = time.perf_counter()
        yield
        self.timings[what] = self.timings.get(what, 0.0) + time.perf_counter() - start
