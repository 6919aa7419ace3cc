"""`yopo models`: what can be converted, told without fetching anything."""

from dataclasses import asdict
from typing import Any

from converters.families import FAMILIES
from converters.families.names import MODELS, Published
from converters.planning.cost import dense_visual_flops

from ..ui.costs import count_text
from ..ui.options import Json
from ..ui.terminal import show_json, show_table, show_text

COLUMNS = ("name", "layers", "hidden", "heads", "KV", "neurons", "tokens", "visual FLOPs")


def models(as_json: Json = False) -> None:
    """List models with short names: sizes, FLOPs of one dense picture (Qwen2-VL 768 x 1024, LLaVA-NeXT 672 x 672, else one tile)."""
    families = list(dict.fromkeys(family.name for family in FAMILIES))
    if as_json:
        show_json({"families": families, "models": {name: _facts(model) for name, model in MODELS.items()}})
        return
    show_table(COLUMNS, [_row(name, model) for name, model in MODELS.items()])
    show_text([""])
    show_table(("name", "family", "on the Hub"), [(name, model.family, model.repository) for name, model in MODELS.items()], numbers=False)
    show_text(["", f"Families: {', '.join(families)}. Any model of theirs can be given as a Hub id or a folder."])


def _row(name: str, model: Published) -> tuple[str, ...]:
    sizes = model.sizes
    heads = (sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads, sizes.num_key_value_heads, sizes.intermediate_size)
    flops = dense_visual_flops(sizes, model.grids)
    return name, *map(str, heads), str(sum(grid.tokens for grid in model.grids)), count_text(flops)


def _facts(model: Published) -> dict[str, Any]:
    facts = {"repository": model.repository, "family": model.family, "sizes": asdict(model.sizes)}
    return facts | {"grids": [asdict(grid) for grid in model.grids], "dense_visual_flops": dense_visual_flops(model.sizes, model.grids)}
