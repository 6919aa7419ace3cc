"""The model card: what was made from what, by which command, what it costs, how to load it, under whose licence."""

import json
import re
from pathlib import Path
from typing import Any

from ..families import Family
from ..json_files import read_bytes
from ..planning.cost import cost, kv_cache_bytes
from ..runtime.plan import Plan, factored, ranges
from .section import Provenance, Refitted

LICENCE_FILES = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?\n)---\s*$", re.DOTALL | re.MULTILINE)
LICENCE_LINE = re.compile(r"^(license|license_name|license_link):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)

TEXT_STAYS = "text keeps every head, neuron and layer, so text-only prompts give the base model's logits;"
CONVERTED = """
# {name}, visual tokens at {share:.1%} of their cost

[{base}]({link}) converted by yopo: {text_stays}
the work done for visual tokens is pruned by a fixed plan, which is in `config.json`.

    {command}

| prefill, {grids} visual tokens | dense | this model | share |
|---|---|---|---|
| visual FLOPs | {visual_dense:.4g} T | {visual:.4g} T | {share:.2%} |
| visual and {text_tokens} text tokens | {total_dense:.4g} T | {total:.4g} T | {total_share:.2%} |
| KV cache at two bytes a value | {cache_dense:.4g} MB | {cache:.4g} MB | {cache_share:.2%} |

One multiply-add is 2 FLOPs; without vision tower and lm_head. Budget asked: {asked}, reached: {share:.4%} of the visual
FLOPs.{calibrated}{refitted}

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(PATH, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(PATH, trust_remote_code=True)
```

The code in this folder needs torch and transformers only. With yopo installed, `import yopo; yopo.register()` makes
`trust_remote_code` unnecessary. `sha256sum -c SHA256SUMS` checks the files.

## Licence

{licence}
"""

NATIVE = """
# {name}

[{base}]({link}), unpruned, in the tensor names of current transformers; written by yopo.

    {command}

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(PATH)
model = AutoModelForImageTextToText.from_pretrained(PATH)
```

## Licence

{licence}
"""


def card(family: Family, folder: Path, plan: Plan | None, provenance: Provenance, refitted: Refitted | None = None) -> str:
    """README.md for a model made from the one in `folder`; `plan` None for one that was not pruned."""
    source = provenance.source
    facts: dict[str, Any] = {
        "name": source.name,
        "base": source.repository or source.name,
        "link": f"https://huggingface.co/{source.repository}" if source.repository else ".",
        "command": provenance.command,
        "licence": _licence_text(folder, provenance),
        "text_stays": TEXT_STAYS,
        "calibrated": _calibrated_text(provenance),
        "refitted": _refitted_text(refitted, plan, provenance),
    }
    # Strings and lists as JSON has them are YAML too.
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in front_matter(folder, plan, provenance).items())
    body = NATIVE.format(**facts) if plan is None else CONVERTED.format(**facts, **_costs(plan, provenance))
    return f"---\n{front}---\n{body}"


def _calibrated_text(provenance: Provenance) -> str:
    """What the plan was chosen by; nothing for a plan that was given, of which that is not known."""
    if (facts := provenance.calibration) is None:
        return ""
    seed = "" if facts["seed"] is None else f", drawn with seed {facts['seed']}"
    return f" The plan was calibrated on {facts['samples']} samples of {facts['from']}{seed} (hash {facts['data'][:12]})."


def _refitted_text(refitted: Refitted | None, plan: Plan | None, provenance: Provenance) -> str:
    if refitted is None or plan is None:
        return ""
    where = f"layers {ranges(refitted.layers)} ({refitted.bytes / 1e6:.3g} MB, no FLOPs more)"
    through = f" In layers {ranges(few)} they come through few dimensions." if (few := factored(plan)) else ""
    return f"\n\nK and V of visual tokens have projections of their own in {where}, fitted on {provenance.refit_samples} samples.{through}"


def front_matter(folder: Path, plan: Plan | None, provenance: Provenance) -> dict[str, Any]:
    tags = ["yopo"] if plan is None else ["yopo", "pruning"]
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": tags}
    if provenance.source.repository:
        facts["base_model"] = provenance.source.repository
    return facts | licence(folder)


def licence(folder: Path) -> dict[str, str]:
    """The base model's licence as the Hub's model cards have it; {} where it states none."""
    stated = _stated_licence(folder / "README.md")
    files = sorted(file.name for file in folder.glob(LICENCE_FILES[0]))
    return stated or ({"license": "other", "license_link": files[0]} if files else {})


def read_card(readme: Path) -> str:
    """A model card, "" where there is none. Raises YopoError for one of another size than texts have."""
    return read_bytes(readme, "Is it a model card?").decode("utf-8", errors="replace") if readme.is_file() else ""


def _stated_licence(readme: Path) -> dict[str, str]:
    front = FRONT_MATTER.match(read_card(readme))
    return {key: value.strip("'\"") for key, value in LICENCE_LINE.findall(front[1])} if front else {}


def _licence_text(folder: Path, provenance: Provenance) -> str:
    stated, base = licence(folder), provenance.source.repository or provenance.source.name
    files = sorted(file.name for pattern in LICENCE_FILES for file in folder.glob(pattern))
    name = stated.get("license_name", stated.get("license"))
    sentences = [
        f"That of the base model: {name}." if name else f"{base} comes without a stated licence; ask its authors before passing this on.",
        f"Its terms: {stated['license_link']}." if "license_link" in stated else "",
        f"Copied from it: {', '.join(files)}." if files else "",
    ]
    return " ".join(filter(None, sentences))


def _costs(plan: Plan, provenance: Provenance) -> dict[str, Any]:
    costs = cost(plan)
    cache = kv_cache_bytes(plan, plan.grids, costs.text_tokens, 2)
    sizes, tokens = plan.sizes, plan.visual_tokens + costs.text_tokens
    cache_dense = tokens * 2 * 2 * sizes.num_key_value_heads * sizes.head_dim * sizes.num_hidden_layers
    return {
        "grids": " + ".join(map(str, plan.grids)),
        "text_tokens": costs.text_tokens,
        "visual": costs.visual / 1e12,
        "visual_dense": costs.visual_dense / 1e12,
        "total": costs.total / 1e12,
        "total_dense": costs.total_dense / 1e12,
        "share": costs.share,
        "total_share": costs.total_share,
        "cache": cache / 1e6,
        "cache_dense": cache_dense / 1e6,
        "cache_share": cache / cache_dense,
        "asked": "none" if provenance.budget is None else f"{provenance.budget:.4%}",
    }
