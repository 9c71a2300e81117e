"""The check, made before anything is written, that every stage of a run can keep to the memory limit.

Stages that split their work to keep to it look again when they run, at what is there then.
"""

from __future__ import annotations

from alphaquant.config import RunConfig
from alphaquant.models.resolve import ModelRef
from flows.dag import Stages, needs_calibration, pipeline, quantize_only


def check_memory(config: RunConfig, model: ModelRef, stages: Stages) -> None:
    """Raise ConfigError for a memory limit that a stage of this run cannot keep."""
    limit = config.execution.memory_bytes
    if limit is None:
        return
    from alphaquant.algorithms.memory_plan import needs_and_room, require_whole
    from alphaquant.algorithms.tuning_memory import foreseen_sizes, tuning_needs, windows_that_fit
    from alphaquant.evaluation.passes import BALANCING, repairing
    from alphaquant.export.foreseen import known_plan
    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.models.device import calibration_dtype, compute_device
    from tasks.room import room_of

    checkpoint = Checkpoint(model.path, model.trust_remote_code, model.architecture)
    device, calibration = compute_device(config.execution.device), config.calibration
    calibrated = stages is not quantize_only or needs_calibration(config)
    length = min(calibration.sequence_length, checkpoint.context_length)
    shape = (calibration.samples, length) if calibrated else (0, 0)
    dtype = calibration_dtype(device, checkpoint.config.hidden_size)
    needs_and_room(limit, checkpoint, shape, config.quantization, device, dtype)
    room = room_of(config.execution)
    if stages is pipeline:
        evaluation = config.evaluation
        if evaluation.tasks:
            room.check_tasks(checkpoint)
        if evaluation.perplexity and not room.holds(checkpoint):
            # how many windows there are is known when the text is read, and checked then
            room.check_blocks(
                checkpoint, 1, min(evaluation.sequence_length, checkpoint.context_length)
            )
    if calibrated and calibration.generated:
        room.check_writing(checkpoint)
    mixture = any(spec.expert is not None for spec in checkpoint.specs)
    if calibrated and calibration.balance > 1 and mixture:
        # how many windows there are to choose from is known when the text is read, and checked then
        room.check_blocks(checkpoint, calibration.samples, length, BALANCING)
    rounding = config.quantization
    # where formats are yet to be chosen, the stage looks when they are
    if rounding.tune == "model" and (
        plan := known_plan(checkpoint.plannable, config.allocation, rounding)
    ):
        sizes = foreseen_sizes(plan, checkpoint.blocks)
        own_head = config.allocation.lm_head is not None
        needs = tuning_needs(checkpoint, sizes, shape, device, own_head=own_head)
        windows_that_fit(needs, device, 1, limit)
    repairs = mixture and checkpoint.architecture.kind != "generic"
    if stages is quantize_only or not repairs:
        return
    if way := repairing(config.router):
        room.check_blocks(checkpoint, calibration.samples, length, way)
    router = config.router.method
    if any(step in ("kl", "ce") for step in router.split("+")):
        require_whole(f"router.method={router}", checkpoint, limit, device)
