"""Models that the memory allowed has no room for: the same plans and answers, and weights read once a pass."""

from pathlib import Path
from typing import Any

import pytest

import yopo
from converters.data.split import SampleSplit
from converters.errors import YopoError
from converters.planning.measure.answers import answered
from converters.planning.measure.prices import Pricing
from converters.planning.measure.trials import Trials
from converters.planning.search.priced import priced_knobs
from converters.planning.search.search import reading_plan
from converters.runtime.plan import Grid, dense_plan

SMALL: Any = {"device": "cpu", "device_map": "auto", "max_memory": {"cpu": "6MB"}}  # the demo has 9.5 MB in float32
LAST = "model.language_model.layers.7.mlp.down_proj"


@pytest.fixture(scope="module")
def offloaded() -> yopo.Model:
    return yopo.load("demo", **SMALL)


def layers_on_disk(model: Any) -> int:
    return sum(all(weight.is_meta for weight in layer.parameters()) for layer in model.get_decoder().layers)


def test_the_same_plan_as_of_a_model_in_memory(offloaded: yopo.Model) -> None:
    options: dict[str, Any] = {"count": 6, "effort": 3}
    whole = yopo.plan(yopo.load("demo", device="cpu"), "demo", [0.2], **options)
    found = yopo.plan(offloaded, "demo", [0.2], **options)
    assert 0 < layers_on_disk(offloaded.torch) < 8
    assert found.at(0.2).plan == whole.at(0.2).plan
    assert found.at(0.2).logit_drift == pytest.approx(whole.at(0.2).logit_drift, rel=1e-6)


def test_weights_are_read_once_a_pass(offloaded: yopo.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward through two batches, and back with three gradients."""
    loaded, read = offloaded.loaded, []
    batches = SampleSplit.of("demo", 17, 0).batches(loaded.processor)
    dense = dense_plan(offloaded.checkpoint.sizes, (Grid(12, 12),))
    trials = Trials(loaded.model, [answered(loaded.model, batch, 2) for batch in batches], dense)
    hook = loaded.model.get_submodule(LAST)._hf_hook
    bring = hook.pre_forward
    monkeypatch.setattr(hook, "pre_forward", lambda *given: read.append(LAST) or bring(*given))
    plan = reading_plan(dense)
    trials.logit_drift(plan)
    assert len(read) == 2  # the dense model's states, which trials start at, and the plan's
    Pricing(trials, trials.batches, 2, priced_knobs(plan.sizes, ("rank",))).of(plan)
    assert len(read) == 3
    assert loaded.model.get_submodule(LAST).weight.is_meta


def test_a_converted_model_is_verified(converted_demo: Path) -> None:
    model = yopo.load(converted_demo, **SMALL)
    assert yopo.verify(model).passed
    assert layers_on_disk(model.torch) > 0
    assert "accelerate places the weights of" in model.loaded.path_report()


def test_what_is_refused(offloaded: yopo.Model) -> None:
    with pytest.raises(YopoError, match="There is no device map 'balanced'"):
        yopo.load("demo", device_map="balanced")
    with pytest.raises(YopoError, match="max_memory bounds what a device map uses, and there is none"):
        yopo.load("demo", max_memory={"cpu": "1GB"})
    with pytest.raises(YopoError, match="max_memory names cuda:7, where nothing is placed"):
        yopo.ask(yopo.load("demo", device="cpu", device_map="auto", max_memory={"cuda:7": "1GB"}), "What is there?")
    with pytest.raises(YopoError, match="Healing has the whole model on its device"):
        yopo.heal(offloaded, "demo", steps=1)
