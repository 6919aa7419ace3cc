"""Short names of published models: where they are on the Hub, and what can be told of them without fetching anything."""

from dataclasses import dataclass

from ..runtime.plan import Grid, Sizes


@dataclass(frozen=True)
class Published:
    """A model on the Hub; `grid` is that of one picture, or tile, at the family's default resolution."""

    repository: str
    family: str
    sizes: Sizes
    grid: Grid


LLAVA, QWEN2_VL, INTERNVL2 = ("LLaVA-1.5", Grid(24, 24)), ("Qwen2-VL", Grid(27, 37)), ("InternVL2", Grid(16, 16))

MODELS: dict[str, Published] = {
    name: Published(repository, family, Sizes(*sizes), grid)
    for name, repository, (family, grid), sizes in (
        # hidden size, neurons, layers, heads, KV heads, width of a head
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", LLAVA, (4096, 11008, 32, 32, 32, 128)),
        ("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", LLAVA, (5120, 13824, 40, 40, 40, 128)),
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", QWEN2_VL, (1536, 8960, 28, 12, 2, 128)),
        ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", QWEN2_VL, (3584, 18944, 28, 28, 4, 128)),
        ("qwen2-vl-72b", "Qwen/Qwen2-VL-72B-Instruct", QWEN2_VL, (8192, 29568, 80, 64, 8, 128)),
        ("internvl2-4b", "OpenGVLab/InternVL2-4B", INTERNVL2, (3072, 8192, 32, 32, 32, 96)),
        ("internvl2-8b", "OpenGVLab/InternVL2-8B", INTERNVL2, (4096, 14336, 32, 32, 8, 128)),
        ("internvl2-26b", "OpenGVLab/InternVL2-26B", INTERNVL2, (6144, 16384, 48, 48, 8, 128)),
    )
}
SHORT_NAMES: dict[str, str] = {name: model.repository for name, model in MODELS.items()}
