"""LoRA-Dash under transformers' Trainer and its subclasses.

    adapter = inject(model, DashConfig(rank=8, target="attention-mlp"))
    callback = DashCallback(DashSchedule(adapter, prelaunch_steps=100))
    trainer = Trainer(model, arguments, train_dataset=..., callbacks=[callback])
    trainer.train()

For a learning rate of the shifts of their own, give the Trainer `optimizers=(dash_optimizer(...), None)`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import CONFIG_NAME

from ..core.adapter import Adapter
from ..core.loading import allowed_difference, tensors_of
from ..core.schedule import DashSchedule
from ..core.sharding import is_sharded, whole
from ..files.errors import InputError
from ..files.fingerprints import compare_probes
from ..files.lora import export_states
from ..files.native import NATIVE_NAME, AdapterState, write_native
from ..runs.gradients import GradientWatch, look_at, untrained_sentence, watches

log = logging.getLogger(__name__)

_STATE = "dash_vision"  # the name of what the callback leaves in the Trainer's state, beside other callbacks'

# The ends of transformers' class names, and PEFT's word for the task.
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


class DashCallback(TrainerCallback):
    """Steps a DashSchedule in a Trainer, and writes the adapter into every checkpoint and into the output folder.

    schedule: of one adapter, in the model that the Trainer trains. Its optimizer need not be given: the Trainer's is
    taken, and its state of the shifts begins at the launch (see DashSchedule).

    A checkpoint of the Trainer, and what `save_pretrained` of the model writes as long as the adapter is in it, holds
    the trained tensors for the Trainer (model.safetensors, without the frozen weights), the native adapter
    (dash_adapter.safetensors), and the same adapter as a plain LoRA of rank r + k in PEFT's layout. There is no
    config.json in it, so that AutoModel.from_pretrained of the folder loads the base that it names and the LoRA into
    it: the trained model. A resumed training computes what the uninterrupted one computes: the phase is in the tensors,
    and the number of updates beside them. An update that fp16's overflow leaves out does not count.
    """

    def __init__(self, schedule: DashSchedule) -> None:
        if len(schedule.adapters) != 1:
            raise ValueError(
                f"DashCallback takes the schedule of one adapter, this one has {len(schedule.adapters)}; inject one "
                "into the whole model"
            )
        self.schedule = schedule
        (self.adapter,) = schedule.adapters.values()
        self._news: dict[str, float] = {}
        self._watches: tuple[GradientWatch, ...] = ()
        self._counted = schedule.steps
        self._about: dict[str, Any] = {}
        if isinstance(self.adapter.model, PreTrainedModel):
            other = self.adapter.model.__dict__.get("save_pretrained")
            if isinstance(other, _SaveAdapterToo) and other.adapter is not self.adapter and other.adapter.layers:
                raise ValueError(
                    f"the model has a DashCallback for the adapter {other.adapter.name!r}, and checkpoints hold one "
                    "adapter; remove() it first, or train one after the other in models of their own"
                )
            self.adapter.model._keys_to_ignore_on_save = cast(Any, FrozenKeys(self.adapter))
            cast(Any, self.adapter.model).save_pretrained = _SaveAdapterToo(self.adapter)
            self._tell_of_adapter(getattr(self.adapter.model, "is_quantized", False))

    def _tell_of_adapter(self, there: bool) -> None:
        """A Trainer takes a quantized model only where transformers' own mark says that it has an adapter; but a model
        with the mark is saved in PEFT's way. So it has it until the Trainer is made."""
        if isinstance(self.adapter.model, PreTrainedModel):
            self.adapter.model._hf_peft_config_loaded = there

    def attach(self, trainer: Trainer) -> DashCallback:
        """Put this callback before the Trainer's own, so that its trackers are told of the launch and of the shifts.

        The alternative to the Trainer's `callbacks=[...]`, which asks the trackers first. Make it before the Trainer
        where the model is quantized.
        """
        self._tell_of_adapter(False)
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    # -- the Trainer's events

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The Trainer has taken the model."""
        self._tell_of_adapter(False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from where the Trainer is. Raises InputError where it resumes from a checkpoint of another adapter, or
        of one on another base: the checkpoint does not hold the frozen weights."""
        self._check(kwargs.get("model"))
        self.schedule.steps = self._counted = self._resumed(state)
        groups = getattr(kwargs.get("optimizer"), "param_groups", [])
        updated = {id(p) for group in groups for p in group["params"]}
        if groups and not any(id(w.A) in updated or id(w.B) in updated for _, w in self.adapter.weights()):
            log.warning("the Trainer's optimizer updates no tensor of the adapter; make it of the adapter's parameters")
        trained = [p for p in self.adapter.model.parameters() if p.requires_grad and p.numel()]
        if not any(map(is_sharded, trained)):
            self._watches = watches([self.adapter.model], trained)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients of the first updates, and at the shifts' of the first ones after the launch; warn of
        tensors without any."""
        for names, unused in look_at(self._watches, self.adapter.launched, lambda seen: seen):
            log.warning("%s", untrained_sentence(names, unused))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an update; the Trainer saves after this, so that the checkpoint of the launch's step is launched."""
        optimizer = kwargs.get("optimizer")
        if getattr(optimizer, "step_was_skipped", False):
            return
        if self.schedule.steps != self._counted:
            raise ValueError(
                f"the schedule counts {self.schedule.steps} updates where the Trainer made {self._counted}: something "
                "else steps it too; leave that to one DashCallback"
            )
        self._counted += 1
        cast(Any, state.stateful_callbacks)[_STATE] = {**self._about, "updates": self._counted}
        if not self.schedule.optimizers and optimizer is not None:
            self.schedule.optimizers = [optimizer]
        report = self.schedule.step()
        if report is None:
            return
        log.info("dash launched after step %d: %d layers, %.1f s", state.global_step, report.layers, report.seconds)
        self._news = {
            "dash_launch_step": state.global_step,
            "dash_layers": report.layers,
            "dash_mean_relative_index": report.mean_relative_index,
        }
        state.log_history.append({**self._news, "step": state.global_step})
        control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the launch and the size of the shifts to what trackers are told; see `attach`."""
        if logs is None:
            return
        logs |= self._news
        self._news = {}
        if self.adapter.launched:
            shifts = [whole(w.dsigma).abs().mean() for _, w in self.adapter.weights()]
            logs["dash_mean_shift"] = torch.stack(shifts).mean().item()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the adapter into the checkpoint that the Trainer has just written, where the model did not itself."""
        if kwargs.get("model") is self.adapter.model and _saves_itself(self.adapter):
            return
        self._write(Path(cast(str, args.output_dir)) / f"checkpoint-{state.global_step}", state.is_world_process_zero)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the adapter into the output folder."""
        if self.adapter.config.dash_k and not self.adapter.launched:
            log.warning(
                "the adapter is a plain LoRA at the end of the training: the launch comes after update %d, and %s; "
                "give DashSchedule a smaller prelaunch_steps",
                self.schedule.prelaunch_steps,
                "the best checkpoint is from before it"
                if self.schedule.steps >= self.schedule.prelaunch_steps
                else f"{self.schedule.steps} were made",
            )
        self._write(Path(cast(str, args.output_dir)), state.is_world_process_zero)

    # -- what they do

    def _check(self, model: Any) -> None:
        """Raises ValueError when the Trainer trains a model without the adapter."""
        if model is not None and not any(module is self.adapter.model for module in model.modules()):
            raise ValueError(
                "the Trainer's model is not the one that the adapter was injected into; inject into the model that the "
                "Trainer gets"
            )

    def _resumed(self, state: TrainerState) -> int:
        """Updates of the weights before the Trainer's next step. What this callback left in the checkpoint's state
        knows it; the Trainer counts the steps that fp16 left out too."""
        own = self.adapter.state()
        self._about = {"scaling": own.scaling, "probes": own.probes}
        stored = cast(Any, state.stateful_callbacks).get(_STATE)
        if stored is None:
            if state.global_step:
                log.warning("the checkpoint is of a training without DashCallback: nothing tells what base it is of")
            return int(state.global_step)
        allowed = allowed_difference(layer.base for layer in self.adapter.layers.values())
        _check_same(stored, own, allowed)
        return int(stored["updates"])

    def _write(self, folder: Path, main: bool) -> None:
        _write(self.adapter, folder, main)


class _SaveAdapterToo:
    """A model's save_pretrained that writes the adapter's files too, whoever calls it.

    An object and no closure: of a copy of the model (an EMA's, say) it writes the copy's own adapter.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As PreTrainedModel.save_pretrained."""
        model = self.adapter.model
        cast(Any, type(model)).save_pretrained(model, save_directory, *args, **kwargs)
        if _saves_itself(self.adapter):
            _write(self.adapter, Path(save_directory), kwargs.get("is_main_process", True))


def _saves_itself(adapter: Adapter) -> bool:
    """Whether save_pretrained of the adapted model writes the adapter's files."""
    if not isinstance(adapter.model, PreTrainedModel) or not adapter.layers:
        return False
    return not _is_merged(adapter) and not adapter.sharded


def _write(adapter: Adapter, folder: Path, main: bool) -> None:
    """Write an adapter's files. Every process takes part where the model is split: its tensors have to be gathered."""
    snapshot = adapter.state()
    heads = trained_modules(adapter) if isinstance(adapter, Adapter) else {}
    if not isinstance(adapter, Adapter) and adapter.sharded:  # else save_pretrained does it
        adapter.write_plain(folder, main)
    if not main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_native({"model": snapshot}, folder / NATIVE_NAME)
    # A PeftModel has written its own files; see integrations.peft.
    if isinstance(adapter, Adapter) and (snapshot.rank or snapshot.launched):
        export_states({"model": snapshot}, folder, "peft", whole=heads, peft=_peft_entries(adapter.model))
        (folder / CONFIG_NAME).unlink(missing_ok=True)  # of a model that the folder does not hold


class FrozenKeys(Set[str]):
    """Names of the parameters that a checkpoint leaves out: those that are not trained, as long as the adapter is in
    the model and not in its weights. What was merged, or has no adapter any more, is saved whole."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def _names(self) -> list[str]:
        if not self.adapter.layers or _is_merged(self.adapter):
            return []
        named = self.adapter.model.named_parameters(remove_duplicate=False)
        names = [name for name, p in named if not p.requires_grad and ".adapters." not in name]
        if not getattr(self.adapter.model, "is_quantized", False):
            return names
        # A quantized weight has more tensors, which are called after it.
        frozen = {*names}
        return [
            *names,
            *(key for key in self.adapter.model.state_dict() if _owner(key) in frozen and key not in frozen),
        ]

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


def _owner(key: str) -> str:
    """ "layer.weight" of "layer.weight.absmax"."""
    head, found, _ = key.rpartition(".weight.")
    return f"{head}.weight" if found else key


def _is_merged(adapter: Adapter) -> bool:
    return any(layer.merged for layer in adapter.layers.values())


def trained_modules(adapter: Adapter) -> dict[str, Tensor]:
    """ "module.key" -> CPU copy of the tensors of every module that is trained whole beside the adapter, such as a
    classification head; every process has to call it."""
    modules = {
        name: module
        for name, module in adapter.model.named_modules()
        if ".adapters" not in name and any(p.requires_grad for p in module.parameters(recurse=False))
    }
    return tensors_of(modules)


def _check_same(stored: dict[str, Any], own: AdapterState, allowed: float) -> None:
    """Raises InputError where a checkpoint is of another adapter than the one that goes on, or of one on another base.

    stored: what the callback left in it. allowed: see compare_probes.
    """
    if stored["probes"].keys() != own.probes.keys() or stored["scaling"] != own.scaling:
        raise InputError(
            f"the checkpoint is of an adapter of {len(stored['probes'])} layers and scale {stored['scaling']:g}, this "
            f"one is of {len(own.probes)} and {own.scaling:g}; resume with the settings that the run began with"
        )
    difference = compare_probes(own.probes, stored["probes"], allowed)
    if difference is not None:
        raise InputError(
            f"the checkpoint is of another base: the frozen weight of {difference[0]} differs; resume with the base "
            "that the run began with"
        )


def _peft_entries(model: nn.Module) -> dict[str, Any]:
    """What PEFT's configuration says of the base: where it came from, and its task."""
    config = getattr(model, "config", None)
    tasks = [task for end, task in _TASKS.items() if type(model).__name__.endswith(end)]
    return {
        "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "task_type": tasks[0] if tasks else None,
    }


def dash_optimizer(model: nn.Module, args: TrainingArguments, dash_lr: float) -> torch.optim.Optimizer:
    """The optimizer that the Trainer would make, with a learning rate of their own for the shifts.

    dash_lr: of all dsigma. Other trained parameters have `args.learning_rate`, and `args.weight_decay` where the
    Trainer gives it to them. For the Trainer's `optimizers=(this, None)`.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, cast(Any, model))
    decayed = set(Trainer.get_decay_parameter_names(cast(Any, None), cast(Any, model)))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    shifts = [p for name, p in trained if name.endswith(".dsigma")]
    if not shifts:
        raise ValueError("the model has no shifts to give a learning rate to; inject an adapter with dash_k > 0 first")
    rest = [(name, p) for name, p in trained if not name.endswith(".dsigma")]
    groups = [
        {"params": [p for name, p in rest if name in decayed], "weight_decay": args.weight_decay},
        {"params": [p for name, p in rest if name not in decayed], "weight_decay": 0.0},
        {"params": shifts, "weight_decay": args.weight_decay, "lr": dash_lr},
    ]
    return cast(torch.optim.Optimizer, kind([group for group in groups if group["params"]], **options))
