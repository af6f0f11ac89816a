"""A prepared job to its end: training with pictures on the way, then everything that the run leaves."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..bases.loading import Base
from ..bases.snippet import loading_lines
from ..core.analysis import largest_share
from ..core.loading import adapter_state
from ..files.errors import RunError, Stopped
from ..files.fingerprints import fingerprint
from ..files.native import AdapterState
from ..files.places import from_root
from ..runs.loop import train
from ..runs.record import RUN, BaseRecord, DreamBoothRecord, Launch, replacing_adapter, write_record
from ..runs.runtime import device_name
from ..runs.signals import StopRequest, catching_signals
from ..runs.versions import installed_versions
from .checkpoints import KEPT, latest_checkpoint
from .evaluating import Evaluator, resting
from .exported import compare, load_exported, load_other
from .job import DreamBoothJob
from .outputs import PACKAGES, Sheet, draw_samples, save_picture, track, write_adapters, write_card

_NEXT_TO_NOTHING = 1e-6  # of the weights; a step of AdamW at 1e-4 leaves some hundred times as much


def fit(job: DreamBoothJob) -> None:
    """Train to max_train_steps. Raises Stopped after SIGINT or SIGTERM, with a checkpoint written; RunError when the
    loss or an update is no finite number."""
    training, total = job.training, job.plan.max_train_steps
    evaluator = Evaluator(job) if job.material.heldout else None
    for network in job.networks.values():
        network.train()
    for adapter in job.adapters.values():
        adapter.prepare()
    job.journal.write(phase="train", step=training.step, total=total, prompts=job.plan.columns)
    with catching_signals() as stop, job.progress():
        if evaluator is not None:
            evaluator.resume()
            _evaluate(job, evaluator, begun=True)
        while training.step < total and (evaluator is None or _agreed(job, evaluator.worth_going_on())):
            _train(job, min(total, _next_pause(job)), stop)
            if _is_due(job, job.plan.settings.save_lora_every):
                _keep_adapters(job)
            if evaluator is not None:
                _evaluate(job, evaluator)
            if training.step < total:
                if _is_due(job, job.plan.validation_steps):
                    _validate(job)
            elif training.checkpoint_every and total % training.checkpoint_every:
                job.save()  # a later run with more steps can resume from here
        if evaluator is not None and training.step < total:
            evaluator.stop()
        _stop_if_asked(job, stop)
    for network in job.networks.values():
        network.eval()


def _next_pause(job: DreamBoothJob) -> int:
    """The next step after which samples are drawn or adapters are kept."""
    plan = job.plan
    periods = (plan.validation_steps, plan.settings.save_lora_every, plan.evaluate_every)
    pauses = [every for every in periods if every]
    return min(((job.training.step // every + 1) * every for every in pauses), default=job.plan.max_train_steps)


def _is_due(job: DreamBoothJob, every: int) -> bool:
    return every > 0 and job.training.step % every == 0


def _agreed(job: DreamBoothJob, flag: bool) -> bool:
    """The first process's answer, on all of them: it alone knows what was measured."""
    return bool(job.runtime.agreed(float(flag)))


def _evaluate(job: DreamBoothJob, evaluator: Evaluator, begun: bool = False) -> None:
    """Measure the job at its step, if that is due and was not done, and keep the adapter that was measured. begun: the
    base alone too, where it was not measured yet."""
    step = job.training.step
    if begun and _agreed(job, evaluator.missing(0)):
        evaluator.measure(None)
    if step and evaluator.due(step) and _agreed(job, evaluator.missing(step)):
        if not _is_due(job, job.plan.settings.save_lora_every):
            _keep_adapters(job)
        evaluator.measure(kept_folder(job).relative_to(job.plan.output).as_posix())
    job.runtime.wait()


def _train(job: DreamBoothJob, until: int, stop: StopRequest) -> None:
    try:
        finished = train(job, job.training, job.runtime, until, stop)
    except RunError as error:
        last = latest_checkpoint(job.plan.output)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise RunError(f"{error}; {kept}") from None
    finally:
        job.timings["train"] = job.training.seconds
    if not finished:
        _stop_if_asked(job, stop, written=True)


def _stop_if_asked(job: DreamBoothJob, stop: StopRequest, written: bool = False) -> None:
    """Raises Stopped, with a checkpoint written, when any process was asked to stop."""
    signum = job.runtime.asked_to_stop(stop)
    if not signum:
        return
    if not written:
        job.save()
    job.close()
    raise Stopped(signum, f"wrote {job.checkpoint}")


def _validate(job: DreamBoothJob) -> None:
    with resting(job):
        draw(job, f"validation/step-{job.training.step:06d}.png", base_row=False)


# -- the end


def _tell_next_to_nothing(job: DreamBoothJob) -> None:
    """Say where an adapter learned so little that float32 hardly holds it beside the weights: it was trained, by a rate
    or by other settings that leave nothing of its gradients."""
    for name, adapter in job.adapters.items():
        share = largest_share(adapter, job.probes[name])
        if share < _NEXT_TO_NOTHING:
            job.say(
                f"warning: the adapter of the {name} is next to nothing, at most {share:.0e} of the weights; look at "
                "the learning rate, the gradients' clipping and the number of steps"
            )


def finish(job: DreamBoothJob) -> None:
    """Write the adapters first, then everything that could still fail: model card, run.json, samples.

    Only the first process writes; the others wait, or give it their part of a split model.
    """
    plan, runtime = job.plan, job.runtime
    job.journal.write(phase="adapters")
    states = _states(job)
    if runtime.main:
        with replacing_adapter(plan.output, "run the same training again"):
            _write_adapters(job, states, plan.output)
            record = describe(job)
            write_card(plan.output, record, loading_lines(job.base), job.base.family)
            write_record(plan.output / RUN, record)  # before the pictures, which may take long or fail
        if not runtime.sharded:  # of a split model no process holds whole weights
            _tell_next_to_nothing(job)
        job.say(f"adapters: {plan.output}")
        if job.evaluation is not None and job.evaluation.recommended is not None:
            job.say(job.evaluation.recommended.sentence)
            job.say(f"compare the checkpoints by: python -m eval checkpoints {shlex.quote(str(plan.output))}")
    exported = None
    if runtime.main and not runtime.sharded:  # of a split model no process holds whole weights
        exported = load_exported(job)
        job.say(str(compare(job, exported)))
        if plan.settings.sample_with is not None:
            exported = load_other(job, plan.settings.sample_with)
    job.journal.write(phase="samples")
    draw(job, "samples.png", base_row=True, exported=exported)
    if runtime.main:
        write_record(plan.output / RUN, describe(job))
    job.journal.write(phase="done")
    runtime.wait()
    job.close()


def _keep_adapters(job: DreamBoothJob) -> None:
    """The adapters as they are, in every format, in a folder of their own below the output folder."""
    states = _states(job)
    if job.runtime.main:
        _write_adapters(job, states, kept_folder(job))
    job.runtime.wait()


def kept_folder(job: DreamBoothJob) -> Path:
    """Where the adapters of the present step are kept."""
    return job.plan.output / KEPT / f"{from_root(job.plan.output).name}-{job.training.step:06d}"


def _states(job: DreamBoothJob) -> dict[str, AdapterState]:
    """The adapters by component; of a split model every process gives its part, else only the first one has them."""
    if not (job.runtime.main or job.runtime.sharded):
        return {}
    return {name: adapter_state(adapter) for name, adapter in job.adapters.items()}


def _write_adapters(job: DreamBoothJob, states: dict[str, AdapterState], folder: Path) -> None:
    plan, family = job.plan, job.base.family
    notes = {"base": job.base.name, "family": family.name, "prompt": plan.prompts.instance, "step": job.training.step}
    subject = plan.prompts.subject or plan.prompts.instance
    clip_skip = plan.settings.clip_skip or 0
    about = family.about(job.base.pipeline)
    about = replace(about, resolution=plan.resolution, trigger=subject, clip_skip=clip_skip)
    notices = write_adapters(states, folder, notes, family.layouts, about)
    for notice in notices if folder == plan.output else ():
        job.say(f"note: {notice}")


def draw(job: DreamBoothJob, name: str, base_row: bool, exported: Base | None = None) -> None:
    """Draw the sheet of inputs, base and trained to the file `name` of the output folder, and give it to trackers.

    exported: the base whose stock pipeline has loaded what was trained, to draw with that instead of the job's own.
    """
    if not (job.runtime.main or job.runtime.sharded):  # a split model computes only on all processes at once
        return
    plan, base = job.plan, exported or job.base
    steps, guidance = plan.settings.num_inference_steps, plan.settings.guidance_scale
    sheet = Sheet(
        inputs=job.material.inputs,
        instance_prompt=plan.prompts.instance,
        subject=plan.prompts.subject or plan.prompts.instance,
        columns=plan.columns,
        seed=plan.settings.seed,
        steps=base.defaults.num_inference_steps if steps is None else steps,
        guidance=base.defaults.guidance_scale if guidance is None else guidance,
        side=plan.resolution,
        makes_room=plan.settings.offload != "none",
        method=f"LoRA-Dash, k = {plan.settings.dash_k}" if plan.settings.dash_k else "LoRA",
        note=f"rank {plan.rank}, {job.training.step} training steps",
    )
    with job.timed("samples"):
        picture = draw_samples(sheet, base, _switch(job, exported), job.runtime, base_row)
    if job.runtime.main:
        save_picture(picture, plan.output / name)
        job.journal.write(picture=name)
        track(job.runtime, picture, job.training.step)


def _switch(job: DreamBoothJob, exported: Base | None) -> Callable[[bool], None]:
    """What turns the trained on and off, in the exported pipeline or in the job's own networks."""

    def switch(on: bool) -> None:
        if exported is not None:
            (exported.pipeline.enable_lora if on else exported.pipeline.disable_lora)()
        for adapter in job.adapters.values() if exported is None else ():
            (adapter.enable if on else adapter.disable)()

    return switch


def describe(job: DreamBoothJob) -> DreamBoothRecord:
    """run.json of the job as it stands."""
    plan, training, runtime = job.plan, job.training, job.runtime
    base = BaseRecord(
        name=job.base.name,
        family=job.base.family.name,
        fingerprints={name: fingerprint(probes) for name, probes in job.probes.items()},
        specification=job.base.specification,
        identity=job.base.identity(),
    )
    return DreamBoothRecord(
        method="dash" if plan.settings.dash_k else "lora",
        base=base,
        instance_prompt=plan.prompts.instance,
        class_prompt=plan.prompts.class_,
        subject=plan.prompts.subject or plan.prompts.instance,
        validation_prompts=list(plan.validation_prompts),
        instance_digest=_digest(job.material.inputs),
        arguments=plan.arguments(),
        seed=plan.settings.seed,
        steps=training.step,
        launch=Launch(**training.launch) if training.launch else None,
        losses=[round(value, 6) for value in training.losses],
        trainable_parameters=sum(p.numel() for a in job.adapters.values() for p in a.parameters()),
        processes=runtime.world,
        fsdp=runtime.sharded,
        mixed_precision=runtime.precision,
        device=device_name(runtime.device),
        timings={name: round(seconds, 2) for name, seconds in job.timings.items()},
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.started)),
        seconds=round(time.time() - job.started, 1),
        versions=installed_versions(PACKAGES),
        untrained=training.untrained,
        evaluation=job.evaluation,
    )


def _digest(pictures: Sequence[Image.Image]) -> str:
    """By which the same pictures in another folder are recognised: 16 hex digits of their sizes and pixels."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()[:16]
