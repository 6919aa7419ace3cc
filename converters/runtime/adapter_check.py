"""Adapters that were made for another order of heads and neurons than a model's: told by what their config says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .layout import layouts
from .plan import Plan, from_json, normalise

CONVERT = "Convert it: `yopo adapt ADAPTER --to MODEL -o OUT`."


def order_sha256(plan: Plan) -> str:
    """The hash of the order in which a plan's model has heads and neurons."""
    order = [(layout.kv_order, layout.query_order, layout.neuron_order) for layout in layouts(normalise(plan))]
    return hashlib.sha256(json.dumps(order).encode()).hexdigest()


def refuse_other_orders(adapter: Any, plan: Plan, base: Mapping[str, Any]) -> None:
    """Raise ValueError where the config of a PEFT adapter says that it was trained on, or converted for, something else than this model.

    In this order: the hash that converting wrote, the class that it was trained on, the folder of its base, the name of its base. One
    that says nothing of these is taken to be the model's own. `base` is the section of config.json on the dense model.
    """
    trained, name = getattr(adapter, "auto_mapping", None) or {}, adapter.base_model_name_or_path or ""
    if (recorded := trained.get("yopo")) is not None:
        if recorded.get("order") != (order := order_sha256(plan)):
            raise ValueError(
                f"This adapter is for {name!r}, a pruned model with another order of heads and neurons "
                f"({str(recorded.get('order'))[:12]}, this one's is {order[:12]}). {CONVERT}"
            )
        return
    kind = trained.get("base_model_class", "")
    if kind and not kind.startswith("Yopo"):
        raise ValueError(f"This adapter was trained on the dense {kind} {name!r}, whose heads and neurons have another order. {CONVERT}")
    if name and (Path(name) / "config.json").is_file():
        other = (json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("yopo") or {}).get("plan")
        if other is None or order_sha256(from_json(other)) != order_sha256(plan):
            raise ValueError(f"This adapter was trained on {name!r}, whose heads and neurons have another order. {CONVERT}")
    elif not kind and name and name in (base.get("name"), base.get("repository")):
        raise ValueError(f"This adapter was trained on the dense model {name!r}, whose heads and neurons have another order. {CONVERT}")
