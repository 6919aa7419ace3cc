"""The checks of `yopo verify`, each told in a line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import YopoError

from ..data.prompts import encode_samples
from ..data.samples import bundled_samples
from ..loading import Dtype, Loaded, load
from ..placing import DeviceMap

# Largest difference of a logit over the largest logit; rounding of float32 and of the 8-bit mantissa of bfloat16 over all layers.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
SAMPLES = 2


@dataclass(frozen=True)
class Check:
    """One check: what, whether it passed, and the figures."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """The checks of a converted model, in order."""

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all of them did."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """`model`, `passed` and `checks`."""
        checks = [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in self.checks]
        return {"model": self.model, "passed": self.passed, "checks": checks}


def checks(path: Path, device: str | None, dtype: Dtype, device_map: DeviceMap | None = None) -> Iterator[Check]:
    """All checks of a converted model; the runtime runs only what the others found whole. YopoError if it is no converted one."""
    from converters.checkpoint.reader import open_converted

    converted = open_converted(path)
    done = [_check("files", _files, converted), _check("plan", _plan, converted), _check("tensors", _tensors, converted)]
    if converted.healed or not converted.dense_side:
        done.append(_check("base", _base, converted))
    yield from done
    if all(check.passed for check in done):
        loaded = load(path, device, dtype, device_map)
        for index, inputs in enumerate(_inputs(loaded), 1):
            yield _check(f"runtime, sample {index}", _runtime, loaded, inputs)


def _check(name: str, check: Callable[..., str], *arguments: Any) -> Check:
    """The check's figures, or the sentence in which it failed."""
    try:
        return Check(name, True, check(*arguments))
    except YopoError as error:
        return Check(name, False, error.message)


def _files(converted: Any) -> str:
    """The folder has the files that were written, and no others."""
    from converters.checkpoint.manifest import CONFIG, MANIFEST, added_files, list_sha256

    if not converted.files:
        raise YopoError("there is no SHA256SUMS")
    if converted.section.get("files") != list_sha256(converted.files):
        raise YopoError(f"{MANIFEST} is not the list that config.json was written with")
    if CONFIG not in converted.files:
        raise YopoError(f"{MANIFEST} does not list {CONFIG}")
    if added := added_files(converted.path, converted.files):
        raise YopoError(f"not listed: {', '.join(added)}")
    if changed := converted.changed_files():
        raise YopoError(f"changed or missing: {', '.join(changed)}")
    return f"{len(converted.files)} files have the sha256 that was written, and there are no others"


def _plan(converted: Any) -> str:
    """The plan is normalised, and what is derived from it is what it says."""
    from converters.checkpoint.section import attention
    from converters.planning.cost import cost
    from converters.runtime.plan import normalise

    plan, section = converted.plan, converted.section
    if plan != normalise(plan):
        raise YopoError("the plan is not normalised")
    if section.get("attention") != attention(plan):
        raise YopoError("the sparse-attention metadata are not the plan's")
    reached = cost(plan).share
    if section.get("budget", {}).get("reached") != reached:
        raise YopoError(f"budget.reached is {section.get('budget', {}).get('reached')}, the plan costs {reached}")
    return f"{len(plan.layers)} layers, {reached:.4f} of the dense visual FLOPs"


def _tensors(converted: Any) -> str:
    from converters.checkpoint.convert import check_plan

    checkpoint = converted.open_tensors()
    check_plan(converted.plan, checkpoint.sizes)
    stated, counted = (
        (converted.section.get("compensation") or {}).get("bytes", 0),
        sum(info.bytes for info in checkpoint.refitted.values()),
    )
    if stated != counted:
        raise YopoError(f"compensation.bytes is {stated}, the refitted projections have {counted}")
    refitted = f", and {len(checkpoint.refitted)} refitted ones of visual tokens" if counted else ""
    return f"{len(checkpoint.tensors)} tensors{refitted}, names and shapes are the model's"


def _base(converted: Any) -> str:
    """With the base projector in its place, the weights are the base model's."""
    base = converted.section["base"]
    if not converted.dense_side:
        return f"the language model was healed: the dense side is not {base['name']} any more"
    if (found := converted.dense_fingerprint()) != base["fingerprint"]:
        raise YopoError(f"the dense side is not {base['name']}: the hash is {found[:12]}, not {base['fingerprint'][:12]}")
    return f"the dense side is {base['name']}, {found[:12]}"


def _inputs(loaded: Loaded) -> Iterator[Any]:
    for sample in bundled_samples(SAMPLES, 0, "eval").stream():
        yield encode_samples(loaded.processor, [sample])


def _runtime(loaded: Loaded, inputs: Any) -> str:
    """Logits of the text rows of the runtime and of the masked reference."""
    import torch

    from converters.evaluation.reference import masked_logits

    inputs = inputs.to(loaded.device, dtype=loaded.model.dtype)
    text = inputs["input_ids"] != loaded.model.config.image_token_id
    with torch.inference_mode():
        runtime, expected = (logits[text].float() for logits in (loaded.model(**inputs).logits, masked_logits(loaded.model, inputs)))
    scale = expected.abs().max().item()
    difference = (runtime - expected).abs().max().item() / max(scale, 1.0)
    limit = TOLERANCES[loaded.dtype]
    if not difference <= limit:  # so that NaN fails
        raise YopoError(f"logits differ from the masked reference by {difference:.1e}, more than {limit:.0e}")
    return f"equals the masked reference to {difference:.1e} ({loaded.dtype})"
