"""Short names of published models: where they are on the Hub, and what can be told of them without fetching anything."""

from dataclasses import dataclass

from ..runtime.plan import Grid, Sizes


@dataclass(frozen=True)
class Published:
    """A model on the Hub; `grids` are those of one picture, or tile, at the family's default resolution."""

    repository: str
    family: str
    sizes: Sizes
    grids: tuple[Grid, ...]


LLAVA, INTERNVL2, INTERNVL = ("LLaVA-1.5", Grid(24, 24)), ("InternVL chat", Grid(16, 16)), ("InternVL", Grid(16, 16))
QWEN2_VL, QWEN2_5_VL, QWEN3_VL = ("Qwen2-VL", Grid(27, 37)), ("Qwen2.5-VL", Grid(27, 37)), ("Qwen3-VL", Grid(24, 32))
# The whole picture, then 672 x 672 pixels of it with an end of row, or 384 x 384.
NEXT = ("LLaVA-NeXT", Grid(24, 24), Grid(48, 49))
ONEVISION = ("LLaVA-OneVision", Grid(27, 27), Grid(27, 28))
SMOLVLM, SMOLVLM2 = ("Idefics3", Grid(8, 8)), ("SmolVLM", Grid(9, 9))

MODELS: dict[str, Published] = {
    name: Published(repository, family, Sizes(*sizes), tuple(grids))
    for name, repository, (family, *grids), sizes in (
        # hidden size, neurons, layers, heads, KV heads, width of a head
        ("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", LLAVA, (4096, 11008, 32, 32, 32, 128)),
        ("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", LLAVA, (5120, 13824, 40, 40, 40, 128)),
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", QWEN2_VL, (1536, 8960, 28, 12, 2, 128)),
        ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", QWEN2_VL, (3584, 18944, 28, 28, 4, 128)),
        ("qwen2-vl-72b", "Qwen/Qwen2-VL-72B-Instruct", QWEN2_VL, (8192, 29568, 80, 64, 8, 128)),
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", QWEN2_5_VL, (2048, 11008, 36, 16, 2, 128)),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", QWEN2_5_VL, (3584, 18944, 28, 28, 4, 128)),
        ("qwen2.5-vl-72b", "Qwen/Qwen2.5-VL-72B-Instruct", QWEN2_5_VL, (8192, 29568, 80, 64, 8, 128)),
        ("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", QWEN3_VL, (2048, 6144, 28, 16, 8, 128)),  # config.json of two of its derivatives
        ("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", QWEN3_VL, (2560, 9728, 36, 32, 8, 128)),  # its config.json
        ("llava-1.6-mistral-7b", "llava-hf/llava-v1.6-mistral-7b-hf", NEXT, (4096, 14336, 32, 32, 8, 128)),  # its config.json, as the next
        ("llava-1.6-vicuna-13b", "llava-hf/llava-v1.6-vicuna-13b-hf", NEXT, (5120, 13824, 40, 40, 40, 128)),
        ("llava-next-llama3-8b", "llava-hf/llama3-llava-next-8b-hf", NEXT, (4096, 14336, 32, 32, 8, 128)),
        ("llava-onevision-7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf", ONEVISION, (3584, 18944, 28, 28, 4, 128)),
        ("smolvlm-256m", "HuggingFaceTB/SmolVLM-256M-Instruct", SMOLVLM, (576, 1536, 30, 9, 3, 64)),
        ("smolvlm2-2.2b", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", SMOLVLM2, (2048, 8192, 24, 32, 32, 64)),
        ("internvl2-4b", "OpenGVLab/InternVL2-4B", INTERNVL2, (3072, 8192, 32, 32, 32, 96)),
        ("internvl2-8b", "OpenGVLab/InternVL2-8B", INTERNVL2, (4096, 14336, 32, 32, 8, 128)),
        ("internvl2-26b", "OpenGVLab/InternVL2-26B", INTERNVL2, (6144, 16384, 48, 48, 8, 128)),
        ("internvl3-1b", "OpenGVLab/InternVL3-1B-hf", INTERNVL, (896, 4864, 24, 14, 2, 64)),
        ("internvl3-2b", "OpenGVLab/InternVL3-2B-hf", INTERNVL, (1536, 8960, 28, 12, 2, 128)),
        ("internvl3-8b", "OpenGVLab/InternVL3-8B-hf", INTERNVL, (3584, 18944, 28, 28, 4, 128)),
        ("internvl3-14b", "OpenGVLab/InternVL3-14B-hf", INTERNVL, (5120, 13824, 48, 40, 8, 128)),
        ("internvl3.5-1b", "OpenGVLab/InternVL3_5-1B-HF", INTERNVL, (1024, 3072, 28, 16, 8, 128)),  # config.json of InternVL3_5-1B
        ("internvl3.5-8b", "OpenGVLab/InternVL3_5-8B-HF", INTERNVL, (4096, 12288, 36, 32, 8, 128)),  # config.json of InternVL3_5-8B
    )
}
SHORT_NAMES: dict[str, str] = {name: model.repository for name, model in MODELS.items()}
