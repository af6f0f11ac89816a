"""A DreamBooth run: set up, fit, save.

    run = DreamBoothRun(config, accelerator, say=print)
    run.fit()
    run.save()

Everything random follows from the seed and a count (see data.py), and a checkpoint holds the rest, so that a run that
was killed and goes on ends with the parameters of the uninterrupted one.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..bases.families import MINIATURE, Base, Conditions, encode_prompts, load_base
from ..bases.noise import NoiseSchedule, denoising_loss
from ..core.adapter import Adapter, inject
from ..core.config import DashConfig
from ..core.loading import probe_weight
from ..core.schedule import DashSchedule
from ..core.sharding import load_optimizer, shard, whole, whole_state
from ..core.targets import find_targets
from ..core.weights import weight_matrix
from ..files.atomic import FolderInUse, FolderLock
from ..files.checkpoint import load_checkpoint, save_checkpoint
from ..files.errors import InputError
from ..files.fingerprints import compare_probes
from ..pictures.folder import InstanceImage, read_folder
from ..runs.signals import StopRequest, catching_signals
from . import config as settings
from .config import DreamBoothConfig, derive_prompts, folder_prompt
from .data import Batch, Example, Framing, Order, draw_batch, encode_examples, join
from .outputs import save_results
from .prior import check_pictures, class_images

# What a checkpoint and the run that goes on from it must agree in: a change would make it another run.
_GROUPS = (settings.DATA, settings.DASH, settings.TRAIN, settings.OPTIM, settings.PRIOR)
_MAY_CHANGE = {
    "instance_data_dir",
    "latent_cache_dir",
    "max_train_steps",
    "gradient_checkpointing",
    "class_data_dir",
    "sample_batch_size",
}
_SPLIT = ("train_batch_size", "gradient_accumulation_steps")  # with the processes, how a step's batch is split
_MOST_SKIPPED = 50  # steps in a row whose gradients overflow fp16; a healthy start skips a few
_UNITS = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")  # whose weights FSDP puts together at a time
_FLUSH = 10  # steps between looks at the loss: each look makes a GPU wait


class Stopped(Exception):
    """The run was asked to stop (SIGINT, SIGTERM) and has written a checkpoint."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.checkpoint = signum, checkpoint


class TrainingError(RuntimeError):
    """The run cannot go on: what happened, what is kept, what to try."""


class DreamBoothRun:
    """One run. Construction reads and checks everything before the base model is loaded, then prepares it.

    say: prints one line for the user, on the main process. sharded: split the trained networks over the processes
    (FSDP) instead of keeping a whole one on each. Raises InputError or InputError for input that cannot be used.
    """

    def __init__(
        self, config: DreamBoothConfig, accelerator: Accelerator, say: Callable[[str], None], sharded: bool = False
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.sharded = sharded and accelerator.num_processes > 1
        self.say = say if accelerator.is_main_process else _silent
        self.device = accelerator.device
        self.output = Path(config.output_dir).expanduser()
        self.started = time.time()
        self.timings: dict[str, float] = {}
        self.losses: list[float] = []
        self.phases: list[dict[str, Any]] = []
        self.step = 0
        self._skipped = 0
        # accelerate launch passes no signal on: its worker watches whether it lives. A shell may go, as under nohup.
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        self._clock, self._first = time.perf_counter(), 0  # when, and at which step, this process began to train
        self._pending: list[Tensor] = []

        if sharded and config.compile:
            raise InputError("--compile does not go with FSDP, which hooks into the blocks; leave one of them out")
        prompts = derive_prompts(config)
        make_writable(self.output)
        self._lock = self._claim_folder() if accelerator.is_main_process else None
        self.checkpoint = find_checkpoint(self.output, config.resume_from_checkpoint)
        with self._timed("load"):
            self.base = self._load_base()
        self._take_defaults()
        pictures = self._read(config.instance_data_dir)
        self.inputs = [picture.image for picture in pictures]
        self.prompts = prompts
        self._announce(pictures)
        self.schedule_of_noise = NoiseSchedule.of(self.base.pipeline.scheduler).to(self.device)
        precise = self._precise_weights()
        self._place_networks()
        class_pictures = self._class_pictures()
        with self._timed("encode"):
            self.examples = self._encode(pictures, self.prompts.instance, "pictures")
            self.class_examples = self._encode(class_pictures, self.prompts.class_, "class pictures")
            self.conditions = self._encode_prompts()
        self.adapters = self._inject()
        for component, weights in precise.items():
            for module, weight in weights.items():
                self.adapters[component].layers[module].precise_weight = weight
        # By these the frozen weights are recognised.
        self.probes = {n: {m: probe_weight(x) for m, x in a.layers.items()} for n, a in self.adapters.items()}
        self.schedule = DashSchedule(self.adapters, config.prelaunch_steps)
        self._prepare_optimizer()
        self._begin()

    # -- setting up

    def _claim_folder(self) -> FolderLock:
        try:
            return FolderLock(self.output)
        except FolderInUse as error:
            raise InputError(f"{error}; wait for it, or give another --output_dir") from None

    def _load_base(self) -> Base:
        c = self.config
        # Missing pictures are the commonest mistake: found before minutes are spent on loading a model.
        check_pictures(c)
        with self.accelerator.main_process_first():  # one process fetches, the others find it in the cache
            base = load_base(
                c.pretrained_model_name_or_path,
                c.revision,
                c.variant,
                c.pretrained_vae_model_name_or_path,
                c.single_file_config,
                c.prediction_type,
                c.vae_revision,
            )
        parameters = sum(p.numel() for p in base.pipeline.unet.parameters())
        self.say(
            f"base: {base.name} ({base.family.name}, {parameters / 1e6:.1f} M parameters in the UNet, "
            f"{base.resolution} px, {base.prediction_type})"
        )
        if base.name == MINIATURE:
            self.say(
                "      it knows a small rendered world; for photographs name another base: "
                "--pretrained_model_name_or_path with a hub id, a folder or a .safetensors file of SD 1.x, 2.x or SDXL"
            )
        return base

    def _take_defaults(self) -> None:
        """Fill in what the user left to the base, and say it."""
        c, taken = self.config, []
        values = {"resolution": self.base.resolution} | vars(self.base.defaults)
        if c.optimizer == "prodigy":
            values["learning_rate"] = 1.0  # a factor on the rate that Prodigy finds
        for name, value in values.items():
            if getattr(c, name) is None:
                setattr(c, name, value)
                taken.append(f"{name} {value:g}")
        if c.dash_lr is None:
            c.dash_lr = c.learning_rate
        if c.text_encoder_lr is None:
            c.text_encoder_lr = c.learning_rate
        if taken:
            self.say(f"      defaults of this base: {', '.join(taken)}")
        factor = math.lcm(self.base.factor, 8)  # diffusers' pipelines sample in multiples of 8
        if c.resolution is None or c.resolution % factor or c.resolution < 2 * factor:
            raise InputError(
                f"--resolution is {c.resolution}; this base takes multiples of {factor} from {2 * factor} on"
            )
        if c.dash_k and c.max_train_steps is not None and c.prelaunch_steps >= c.max_train_steps:
            raise InputError(
                f"--prelaunch_steps {c.prelaunch_steps} leaves nothing of --max_train_steps {c.max_train_steps} for "
                "the dash; give fewer of the first, more of the second, or --dash_k 0 for plain LoRA"
            )

    def _read(self, folder: str) -> tuple[InstanceImage, ...]:
        assert self.config.resolution is not None
        c = self.config
        prompt = None if c.instance_prompt else folder_prompt
        found = read_folder(folder, resolution=self.config.resolution, captions=c.use_captions, prompt=prompt)
        for note in found.notes:
            self.say(f"note: {note}")
        return found.images

    def _announce(self, pictures: tuple[InstanceImage, ...]) -> None:
        own = sum(picture.caption is not None for picture in pictures)
        source = "" if self.config.instance_prompt else " (from the folder's name; --instance_prompt gives another)"
        captions = f", {own} with a caption of its own" if own else ""
        self.say(f"pictures: {len(pictures)} in {self.config.instance_data_dir}{captions}")
        self.say(f'prompt: "{self.prompts.instance}"{source}')

    def _class_pictures(self) -> tuple[InstanceImage, ...]:
        c = self.config
        if not c.with_prior_preservation:
            return ()
        folder = Path(c.class_data_dir or self.output / "class_images").expanduser()
        with self._timed("class images"):
            return class_images(self.base, folder, self.prompts.class_, c, self.accelerator, self._dtype(), self.say)

    def _encode(self, pictures: tuple[InstanceImage, ...], prompt: str, what: str) -> list[Example]:
        c = self.config
        if not pictures:
            return []
        assert c.resolution is not None
        framing = Framing(c.resolution, c.center_crop, c.random_flip, c.aspect_ratio_buckets, c.num_crop_variants)
        cache = Path(c.latent_cache_dir).expanduser() if c.latent_cache_dir else None
        quiet = not self.accelerator.is_main_process or len(pictures) < 20

        def progress(items: Iterable[InstanceImage]) -> Iterable[InstanceImage]:
            return tqdm(items, desc=f"encoding {what}", disable=quiet, leave=False)

        return encode_examples(self.base, pictures, prompt, framing, self.device, c.seed, cache, progress)

    def _encode_prompts(self) -> dict[str, Any]:
        """Conditions of every training prompt, or its token ids when the text encoders are trained."""
        prompts = list(dict.fromkeys(e.prompt for e in [*self.examples, *self.class_examples]))
        for prompt in dict.fromkeys([*prompts, *self.config.validation_prompt]):
            cut = self.base.family.left_out(self.base.pipeline, prompt)
            if cut:
                self.say(f'note: "{prompt}" is longer than this base reads; it will not see: "{cut}"')
        if self.config.train_text_encoder:
            ids = self.base.family.tokenize(self.base.pipeline, prompts)
            return {p: [i[n : n + 1].to(self.device) for i in ids] for n, p in enumerate(prompts)}
        encoded = encode_prompts(self.base, prompts, self.device)
        return {p: {k: v.to(self.device) for k, v in c.items()} for p, c in encoded.items()}

    def _dtype(self) -> torch.dtype:
        """What the frozen networks are kept in; adapters always train in float32."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.accelerator.mixed_precision, torch.float32)

    def _place_networks(self) -> None:
        c, pipeline = self.config, self.base.pipeline
        if c.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        self._place(pipeline.unet)
        if c.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        if self.device.type == "cpu" and c.resolution is not None and c.resolution // self.base.factor <= 32:
            from diffusers.models.attention_processor import AttnProcessor

            # On the CPU the backward pass of PyTorch's fused attention is slow for short sequences: it took 40% of
            # the miniature's training step, the plain product a tenth of that.
            pipeline.unet.set_attn_processor(AttnProcessor())
        if c.train_text_encoder:
            for encoder in self.base.text_encoders():
                self._place(encoder)
                if c.gradient_checkpointing:
                    cast(Any, encoder).gradient_checkpointing_enable({"use_reentrant": False})

    def _targets(self) -> dict[str, str | list[str]]:
        """DashConfig's target for each component to adapt, "unet" first."""
        c = self.config
        targets: dict[str, str | list[str]] = {"unet": c.lora_target[0] if len(c.lora_target) == 1 else c.lora_target}
        if c.train_text_encoder:
            for name, encoder in zip(self.base.family.text_encoders, self.base.text_encoders(), strict=True):
                targets[name] = self.base.family.text_target(name, encoder)
        return targets

    def _precise_weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights to adapt as they are before a cast to half precision, for the launch: on the CPU, not copied."""
        c = self.config
        if self._dtype() == torch.float32 or not c.dash_k:
            return {}
        found = {}
        for name, target in self._targets().items():
            try:
                layers = find_targets(getattr(self.base.pipeline, name), target)
            except ValueError as error:
                raise InputError(f"--lora_target: {error}") from None
            found[name] = {m: weight_matrix(layer).detach() for m, layer in layers.items()}
        return found

    def _place(self, network: nn.Module) -> None:
        if self._dtype() != torch.float32:
            network.to(self._dtype())  # before it goes to the device, which need not hold it in float32
        network.to(self.device)

    def _inject(self) -> dict[str, Adapter]:
        """Adapters by component, "unet" first."""
        c = self.config
        torch.manual_seed(c.seed)
        adapters = {}
        for name, target in self._targets().items():
            config = DashConfig(c.rank, c.lora_alpha, c.dash_k, target, c.lora_dropout, c.dash_eps, c.dash_selection)
            try:
                adapters[name] = inject(getattr(self.base.pipeline, name), config)
            except ValueError as error:
                raise InputError(f"--lora_target: {error}") from None
        return adapters

    def _prepare_optimizer(self) -> None:
        c = self.config
        if self.sharded and (c.optimizer != "adamw" or c.use_8bit_adam):
            wanted = "--use_8bit_adam" if c.use_8bit_adam else f"--optimizer {c.optimizer}"
            raise InputError(f"FSDP splits the optimizer's numbers too, which {wanted} does not take; leave it out")
        # Networks first: splitting one exchanges its parameters.
        self.networks = {name: self._spread(adapter.model) for name, adapter in self.adapters.items()}
        self.optimizer = make_optimizer(c, parameter_groups(self.adapters, c, self._lr_factor()))
        self.lr_scheduler = make_lr_scheduler(c, self.optimizer)
        self.accelerated = self.accelerator.prepare(self.optimizer)

    def _spread(self, network: nn.Module) -> nn.Module:
        """`network` on all processes: split over them, or a whole one on each (DDP)."""
        if not self.sharded:
            return self.accelerator.prepare(network)  # compiled where the accelerator was told so
        try:
            shard(network, lambda name, module: type(module).__name__ in _UNITS, self.device)
        except ValueError as error:
            raise InputError(str(error)) from None
        return network

    def _lr_factor(self) -> float:
        c = self.config
        if not c.scale_lr:
            return 1.0
        assert c.train_batch_size is not None
        return float(c.gradient_accumulation_steps * c.train_batch_size * self.accelerator.num_processes)

    def _begin(self) -> None:
        """Go on from the checkpoint, or start afresh beside what an earlier run may have left."""
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
            self.say(f"resumed from {self.checkpoint} at step {self.step}")
        elif self.config.resume_from_checkpoint == "latest":
            self.say(f"note: there is no checkpoint in {self.output} yet; starting from the beginning")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            kept = put_aside(self.output, self.step)
            if kept:
                self.say(f"note: later checkpoints of an earlier run were moved to {kept}")
        self.accelerator.wait_for_everyone()

    # -- training

    def fit(self) -> None:
        """Train to max_train_steps. Raises Stopped after SIGINT or SIGTERM, TrainingError when the loss is lost."""
        c = self.config
        assert c.max_train_steps is not None
        for network in self.networks.values():
            network.train()
        for adapter in self.adapters.values():
            adapter.prepare()
        self._clock, self._first = time.perf_counter(), self.step
        with catching_signals() as stop, self._progress() as bar:
            while self.step < c.max_train_steps:
                self._one_step()
                bar.update()
                if self.step % _FLUSH == 0 or self.step == c.max_train_steps:
                    self._flush(bar)
                self._maybe_launch(bar)
                done = self.step == c.max_train_steps
                if c.checkpointing_steps and (done or self.step % c.checkpointing_steps == 0):
                    self._save_checkpoint(bar)  # also at the end: a later run may go on from there
                if c.validation_steps and self.step % c.validation_steps == 0 and not done:
                    self._flush(bar)
                    self._validate()
                self._maybe_stop(stop, bar)
            self._flush(bar)
        self.timings["train"] = self._trained_seconds()
        for network in self.networks.values():
            network.eval()

    def _one_step(self) -> None:
        """One optimizer step: every accumulated batch forward and backward, then the update."""
        c, accelerator = self.config, self.accelerator
        torch.manual_seed(c.seed + 1 + self.step * accelerator.num_processes + accelerator.process_index)  # dropout
        losses = []
        for part in range(c.gradient_accumulation_steps):
            last = part == c.gradient_accumulation_steps - 1
            with nullcontext() if last else self._unsynchronized():
                loss = sum(self._loss(batch) for batch in self._batches(part))
                assert isinstance(loss, Tensor)
                accelerator.backward(loss / c.gradient_accumulation_steps)
            losses.append(loss.detach())
        norm = accelerator.clip_grad_norm_(self._parameters(), c.max_grad_norm)
        self.accelerated.step()
        self.accelerated.zero_grad()
        mean = torch.stack(losses).mean()
        if accelerator.optimizer_step_was_skipped:  # fp16: the gradients overflowed, and the loss scale goes down
            self._skipped += 1
        else:
            self._skipped = 0
            self.lr_scheduler.step()
            # A gradient that is not finite has just spoilt the weights, though this step's loss may look well.
            assert norm is not None
            norm = whole(norm)
            mean = torch.where(torch.isfinite(norm), mean, norm.to(mean) * 0)
        self.step += 1
        self._pending.append(mean)

    def _trained_seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.timings.get("train", 0.0) + time.perf_counter() - self._clock

    @contextmanager
    def _unsynchronized(self) -> Iterator[None]:
        """Gradients stay on each process while batches accumulate."""
        with ExitStack() as stack:
            for network in self.networks.values():
                if self.sharded:
                    synchronize = cast(Any, network).set_requires_gradient_sync
                    synchronize(False)
                    stack.callback(synchronize, True)
                else:
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def _batches(self, part: int) -> list[Batch]:
        """The batches of one forward: instance and, under prior preservation, class pictures."""
        c, world = self.config, self.accelerator.num_processes
        assert c.train_batch_size is not None
        number = (self.step * c.gradient_accumulation_steps + part) * world + self.accelerator.process_index
        total = self.schedule_of_noise.timesteps
        order = Order(self.examples, c.train_batch_size, c.seed, "instance")
        batch = draw_batch(self.base, self.examples, order, number, total)
        if not self.class_examples:
            return [batch]
        order = Order(self.class_examples, c.train_batch_size, c.seed, "class")
        other = draw_batch(self.base, self.class_examples, order, number, total, c.prior_loss_weight)
        return [join(batch, other)] if batch.latents.shape[1:] == other.latents.shape[1:] else [batch, other]

    def _loss(self, batch: Batch) -> Tensor:
        latents, noise = batch.latents.to(self.device), batch.noise.to(self.device)
        t = batch.timesteps.to(self.device)
        noisy = self.schedule_of_noise.noisy(latents, noise, t)
        target = self.schedule_of_noise.target(latents, noise, t)
        with self.accelerator.autocast():
            conditions = self._conditions(batch)
            predicted = self.base.family.denoise(self.networks["unet"], noisy, t, conditions)
        weights = self.schedule_of_noise.weights(t, self.config.snr_gamma) * batch.share.to(self.device)
        return denoising_loss(predicted, target, weights).sum()

    def _conditions(self, batch: Batch) -> Conditions:
        pictures = {key: value.to(self.device) for key, value in batch.pictures.items()}
        entries = [self.conditions[prompt] for prompt in batch.prompts]
        if self.config.train_text_encoder:
            encoders = [self.networks[name] for name in self.base.family.text_encoders]
            ids = [torch.cat([entry[i] for entry in entries]) for i in range(len(encoders))]
            return self.base.family.encode_tokens(encoders, ids) | pictures
        return {key: torch.cat([entry[key] for entry in entries]) for key in entries[0]} | pictures

    def _parameters(self) -> list[nn.Parameter]:
        return [p for adapter in self.adapters.values() for p in adapter.parameters()]

    def _flush(self, bar: tqdm) -> None:
        """Read the losses of the last steps, check them, show and track them."""
        if not self._pending:
            return
        mean = self.accelerator.reduce(torch.stack(self._pending), reduction="mean")
        values = mean.tolist()
        first = self.step - len(values) + 1
        self._pending = []
        if self._skipped >= _MOST_SKIPPED:
            raise TrainingError(
                f"the gradients overflowed in each of the last {self._skipped} steps, so nothing is being learned; try "
                "--mixed_precision bf16 or no"
            )
        for step, value in enumerate(values, first):
            if not math.isfinite(value):
                raise TrainingError(self._lost(step, value))
        self.losses += values
        rate = self.lr_scheduler.get_last_lr()[0]
        per_step = self.config.gradient_accumulation_steps * (self.config.train_batch_size or 1)
        per_step *= self.accelerator.num_processes
        speed = (self.step - self._first) * per_step / max(1e-9, time.perf_counter() - self._clock)
        bar.set_postfix_str(f"loss {sum(values) / len(values):.4f}, lr {rate:.1e}, {speed:.1f} images/s")
        for step, value in enumerate(values, first):
            self.accelerator.log({"loss": value, "lr": rate}, step=step)

    def _lost(self, step: int, value: float) -> str:
        last = latest_checkpoint(self.output)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"the loss is {value} at step {step}, so nothing trained from here on would be of use; {kept}; try a lower "
            "--learning_rate, or --mixed_precision bf16 instead of fp16"
        )

    def _maybe_launch(self, bar: tqdm) -> None:
        # A step that the loss scaler skipped changed no weight: it is no optimizer step.
        if self.accelerator.optimizer_step_was_skipped:
            return
        try:
            report = self.schedule.step()
        except ValueError as error:
            raise TrainingError(f"the dash cannot be launched at step {self.step}: {error}") from None
        if report is None:
            return
        for adapter in self.adapters.values():
            for layer in adapter.layers.values():
                layer.precise_weight = None  # it has served
        self.phases.append(
            {
                "phase": "dash",
                "after_step": self.step,
                "layers": report.layers,
                "seconds": round(report.seconds, 3),
                "mean_relative_index": round(report.mean_relative_index, 4),
            }
        )
        bar.set_description_str("dash")
        if self.accelerator.is_main_process:
            bar.write(f"step {self.step}: {report}")

    def _progress(self) -> tqdm:
        phase = "dash" if self.schedule.launched else "pre-launch" if self.config.dash_k else "LoRA"
        return tqdm(
            total=self.config.max_train_steps,
            initial=self.step,
            desc=phase,
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )

    def _validate(self) -> None:
        from .outputs import draw_samples

        for network in self.networks.values():
            network.eval()
        draw_samples(self, self.output / "validation" / f"step-{self.step:06d}.png", base_row=False)
        for network in self.networks.values():
            network.train()

    # -- stopping and going on

    def _maybe_stop(self, stop: StopRequest, bar: tqdm) -> None:
        signum = stop.signal or 0
        if self._launcher is not None and os.getppid() != self._launcher:
            signum = signal.SIGTERM
        if self.accelerator.num_processes > 1:  # one was told, all stop at the same step
            votes = self.accelerator.gather(torch.tensor([signum], device=self.device))
            signum = int(votes.max())
        if signum:
            self._flush(bar)
            path = self._save_checkpoint(bar)
            bar.close()
            self.close()
            raise Stopped(signum, path)

    def _save_checkpoint(self, bar: tqdm) -> Path:
        """Write checkpoint-STEP.safetensors; older ones go only after it is complete."""
        self._flush(bar)
        path = self.output / f"checkpoint-{self.step}.safetensors"
        # Of a split model every process gives its part.
        state = self._state() if self.accelerator.is_main_process or self.sharded else {}
        if self.accelerator.is_main_process:
            save_checkpoint(path, state)
            limit = self.config.checkpoints_total_limit
            for old in checkpoints(self.output)[:-limit] if limit else []:
                old.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        return path

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "settings": self._identity(),
            "base": self.probes,
            "adapters": {name: adapter.state_dict(("A", "B")) for name, adapter in self.adapters.items()},
            "schedule": self.schedule.state_dict(),
            "optimizer": whole_state(self.optimizer.state_dict()),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "losses": self.losses,
            "phases": self.phases,
            "timings": {**self.timings, "train": self._trained_seconds()},
        }

    def _identity(self) -> dict[str, Any]:
        c = self.config
        names = [f.name for f in fields(c) if f.metadata["group"] in _GROUPS and f.name not in _MAY_CHANGE]
        if c.lr_scheduler not in ("constant", "constant_with_warmup"):
            names.append("max_train_steps")  # the rate's course depends on it
        first = {"learning_rate": c.learning_rate}  # other rates are derived from it: name the cause
        pictures = [[e.name, len(e.views), e.prompt] for e in self.examples]
        last = {"mixed_precision": str(self.accelerator.mixed_precision), "instance_data": pictures}
        return first | {name: getattr(c, name) for name in names} | last

    def _restore(self, path: Path) -> None:
        try:
            state = load_checkpoint(path)
            self._compare(path, state)
            schedule = state["schedule"]
            for name, adapter in self.adapters.items():
                adapter.load_state_dict({**adapter.state_dict(), **state["adapters"][name]})
            self.schedule.load_state_dict(schedule)
            load_optimizer(self.optimizer, state["optimizer"])
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if state["processes"] != self.accelerator.num_processes:
                kind = "the same batches, split otherwise" if self._same_batches(state) else "other batches than before"
                self.say(
                    f"note: {path} was written by {state['processes']} processes, this run has "
                    f"{self.accelerator.num_processes}: it goes on with {kind}"
                )
            self.step, self.losses = state["step"], state["losses"]
            self.phases, self.timings = state["phases"], state["timings"]
        except InputError as error:
            raise InputError(str(error)) from None
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} does not fit this run ({error}); use another checkpoint or start anew") from None

    def _compare(self, path: Path, state: dict[str, Any]) -> None:
        was, now = state["settings"], self._identity()
        if self._same_batches(state):
            now = {name: value for name, value in now.items() if name not in _SPLIT}
        for name, value in now.items():
            if name == "instance_data" and was.get(name) != value:
                raise InputError(
                    f"the pictures or captions in {self.config.instance_data_dir} are not those that {path} was "
                    "trained on; put them back, or leave out --resume_from_checkpoint to start anew"
                )
            if was.get(name) != value:
                raise InputError(
                    f"{path} was trained with --{name} {was.get(name)}, this run has {value}; give the same value to "
                    "go on, or leave out --resume_from_checkpoint to start anew"
                )
        for name, probes in self.probes.items():
            difference = compare_probes(probes, state["base"][name])
            if difference is not None:
                raise InputError(
                    f"{path} was trained on another base (the weights of {name}.{difference[0]} differ); give the same "
                    "--pretrained_model_name_or_path"
                )

    def _same_batches(self, state: dict[str, Any]) -> bool:
        """Whether each optimizer step of this run has the pictures and the noise that it had in the run of `state`.

        They follow from the size of the whole batch, however it is split; but pictures of several sizes are drawn by
        the --train_batch_size.
        """
        was, now = state["settings"], self._identity()
        sizes = [values["train_batch_size"] * values["gradient_accumulation_steps"] for values in (was, now)]
        whole_batches = sizes[0] * state["processes"], sizes[1] * self.accelerator.num_processes
        alike = not self.config.aspect_ratio_buckets or was["train_batch_size"] == now["train_batch_size"]
        return alike and whole_batches[0] == whole_batches[1]

    # -- the end

    def save(self) -> None:
        """Write the adapters first, then everything that could still fail: samples, model card, run.json."""
        save_results(self)
        self.close()

    def close(self) -> None:
        """Let other runs have the output folder."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[what] = self.timings.get(what, 0.0) + time.perf_counter() - start


def _silent(line: str) -> None:
    """What the processes other than the first say."""


# -- optimizers


def parameter_groups(adapters: dict[str, Adapter], c: DreamBoothConfig, factor: float) -> list[dict[str, Any]]:
    """A and B by component, and all dsigma, each with its learning rate."""
    groups = []
    shifts: list[nn.Parameter] = []
    for name, adapter in adapters.items():
        named = list(adapter.named_parameters())
        shifts += [p for key, p in named if key.endswith(".dsigma")]
        factors = [p for key, p in named if not key.endswith(".dsigma")]
        rate = c.learning_rate if name == "unet" else c.text_encoder_lr
        groups.append({"params": factors, "lr": (rate or 0.0) * factor})
    if shifts:
        groups.append({"params": shifts, "lr": (c.dash_lr or 0.0) * factor})
    return groups


def make_optimizer(c: DreamBoothConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, 8-bit AdamW or Prodigy; the latter two from their own packages, imported only here."""
    common: dict[str, Any] = {"betas": (c.adam_beta1, c.adam_beta2), "weight_decay": c.adam_weight_decay}
    if c.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError:
            raise InputError("--optimizer prodigy needs its package: pip install 'dash-vision[prodigy]'") from None
        if len({group["lr"] for group in groups}) > 1:
            raise InputError("prodigy has one learning rate for all; leave out --dash_lr and --text_encoder_lr")
        return Prodigy(
            groups, lr=groups[0]["lr"], eps=c.adam_epsilon, use_bias_correction=True, safeguard_warmup=True, **common
        )
    if c.use_8bit_adam:
        try:
            import bitsandbytes
        except ImportError:
            raise InputError("--use_8bit_adam needs its package: pip install 'dash-vision[8bit]'") from None
        return bitsandbytes.optim.AdamW8bit(groups, eps=c.adam_epsilon, **common)
    return torch.optim.AdamW(groups, eps=c.adam_epsilon, **common)


def make_lr_scheduler(c: DreamBoothConfig, optimizer: torch.optim.Optimizer) -> Any:
    """diffusers' schedule of that name, counted in optimizer steps."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        c.lr_scheduler,
        optimizer,
        num_warmup_steps=c.lr_warmup_steps,
        num_training_steps=c.max_train_steps,
        num_cycles=c.lr_num_cycles,
        power=c.lr_power,
    )


# -- folders and checkpoints


def make_writable(folder: Path) -> None:
    """Make `folder` and try to write there. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to --output_dir {folder} ({reason}); give another folder") from None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, the oldest first."""
    found = [p for p in folder.glob("checkpoint-*.safetensors") if p.stem.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint-"))


def latest_checkpoint(folder: Path) -> Path | None:
    """The one with the most steps."""
    found = checkpoints(folder)
    return found[-1] if found else None


def find_checkpoint(folder: Path, wanted: str | None) -> Path | None:
    """The file that --resume_from_checkpoint names; None for "latest" when there is none. Raises InputError."""
    if wanted is None:
        return None
    if wanted == "latest":
        return latest_checkpoint(folder)
    for path in (Path(wanted).expanduser(), folder / wanted, folder / f"{wanted}.safetensors"):
        if path.is_file():
            return path
    there = ", ".join(p.stem for p in checkpoints(folder)) or "none"
    raise InputError(f"there is no checkpoint {wanted}; in {folder} there are: {there}")


def put_aside(folder: Path, step: int) -> Path | None:
    """Move checkpoints after `step`, which an earlier run left, where "latest" does not find them.

    Returns the new folder, if any moved.
    """
    old = [path for path in checkpoints(folder) if _step_of(path) > step]
    if not old:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    target.mkdir()
    for path in old:
        shutil.move(path, target / path.name)
    return target
