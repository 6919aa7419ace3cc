"""How each architecture sees pictures and counts positions in a training row, and its first weights, taken from the demo's."""

import re
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from tools.demo.architecture import IMAGE_MEAN, IMAGE_STD, PATCH_SIZE

from .architectures import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, INTERNVL_TOKENS, NEXT_TILE, QWEN_TOKENS, TILE, VISION, Untrained

START = ("<s>", "USER:")
GRID = 12  # visual tokens in a row and a column of the demo's pictures


def normalised(pixels: Tensor, mean: Any = IMAGE_MEAN, std: Any = IMAGE_STD) -> Tensor:
    """(B, 3, height, width), bytes in, floats out."""
    return (pixels.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


@dataclass
class Student:
    """A LLaVA. `order` gives the places in the demo's 12x12 grid of some visual tokens, `slots` where these are among all of them."""

    untrained: Untrained

    @property
    def model(self) -> Any:
        return self.untrained.model

    @property
    def language(self) -> Any:
        return self.model.model.language_model

    @property
    def tower(self) -> nn.Module:
        return self.model.model.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    def around(self) -> tuple[list[int], list[int]]:
        """Tokens before and after the visual ones."""
        return self.ids(*START), []

    def ids(self, *tokens: str) -> list[int]:
        return list(self.untrained.tokenizer.convert_tokens_to_ids(list(tokens)))

    def order(self) -> Tensor:
        return torch.arange(GRID * GRID)

    def slots(self) -> Tensor:
        return torch.arange(GRID * GRID)

    def visual(self, pixels: Tensor) -> Tensor:
        """Visual tokens as the language model gets them, (B, V, hidden), of pictures (B, 3, height, width) in bytes."""
        states = self.tower(normalised(pixels), output_hidden_states=True).hidden_states
        return self.projector(states[self.model.config.vision_feature_layer][:, 1:])

    def positions(self, pixels: Tensor, offsets: Tensor) -> Tensor:
        """Positions of a whole row, (B, prefix + L); `offsets` (B, L) count from 0 within each question."""
        before, after = self.around()
        prefix = len(before) + self.visual_tokens(pixels) + len(after)
        return torch.cat([torch.arange(prefix).expand(len(offsets), prefix), prefix + offsets], dim=1)

    def visual_tokens(self, pixels: Tensor) -> int:
        return GRID * GRID


class QwenStudent(Student):
    """Pictures of any size; positions count rows and columns."""

    @property
    def tower(self) -> nn.Module:
        return self.model.model.visual

    @property
    def projector(self) -> nn.Module:
        return self.model.model.visual.merger

    def around(self) -> tuple[list[int], list[int]]:
        return self.ids(*START, QWEN_TOKENS["vision_start"]), self.ids(QWEN_TOKENS["vision_end"])

    def visual(self, pixels: Tensor) -> Tensor:
        count, _, height, width = pixels.shape
        rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
        cut = normalised(pixels).view(count, 3, rows, PATCH_SIZE, columns, PATCH_SIZE)
        patches = cut.permute(0, 2, 4, 1, 3, 5).unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)  # the frame twice
        grids = torch.tensor([[1, rows, columns]]).expand(count, 3)
        merged = self.tower(patches.reshape(count * rows * columns, -1), grid_thw=grids).pooler_output
        return merged.view(count, rows * columns, -1)

    def visual_tokens(self, pixels: Tensor) -> int:
        return pixels.shape[2] * pixels.shape[3] // PATCH_SIZE**2

    def positions(self, pixels: Tensor, offsets: Tensor) -> Tensor:
        """(3, B, prefix + L): time, row and column."""
        before, after = (len(tokens) for tokens in self.around())
        rows, columns = (side // PATCH_SIZE for side in pixels.shape[2:])
        row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
        places = torch.stack([torch.zeros_like(row), row, column]) + before
        end = before + max(rows, columns)
        prefix = torch.cat([torch.arange(before).expand(3, before), places, end + torch.arange(after).expand(3, after)], dim=1)
        count = len(offsets)
        text = (end + after + offsets).expand(3, *offsets.shape)
        return torch.cat([prefix.unsqueeze(1).expand(3, count, prefix.shape[1]), text], dim=2)


class InternvlStudent(Student):
    """Four tiles and a thumbnail of a picture of 96 pixels."""

    def around(self) -> tuple[list[int], list[int]]:
        return self.ids(*START, INTERNVL_TOKENS["start_image_token"]), self.ids(INTERNVL_TOKENS["end_image_token"])

    def order(self) -> Tensor:
        places = torch.arange(GRID * GRID).view(2, GRID // 2, 2, GRID // 2)
        return places.permute(0, 2, 1, 3).flatten()

    def visual(self, pixels: Tensor) -> Tensor:
        count = len(pixels)
        tiles = pixels.view(count, 3, 2, TILE, 2, TILE).permute(0, 2, 4, 1, 3, 5).reshape(count, 4, 3, TILE, TILE)
        seen = torch.cat([tiles, thumbnails(pixels).unsqueeze(1)], dim=1).flatten(0, 1)
        values = normalised(seen, IMAGENET_MEAN, IMAGENET_STD)
        return self.model.model.get_image_features(values, return_dict=True).pooler_output.reshape(count, self.visual_tokens(pixels), -1)

    def visual_tokens(self, pixels: Tensor) -> int:
        return 5 * (TILE // PATCH_SIZE) ** 2


class NextStudent(Student):
    """Pictures of several sizes: the whole, then tiles side by side without their padding and an end after every row."""

    def slots(self) -> Tensor:
        rows = torch.arange(GRID)[:, None] * (GRID + 1)
        return (NEXT_TILE // PATCH_SIZE) ** 2 + (rows + torch.arange(GRID)).flatten()

    def visual(self, pixels: Tensor) -> Tensor:
        count, _, height, width = pixels.shape
        side = max(height, width) // NEXT_TILE
        across, down = (side * NEXT_TILE - width) // 2, (side * NEXT_TILE - height) // 2
        cut = nn.functional.pad(pixels, (across, across, down, down)).view(count, 3, side, NEXT_TILE, side, NEXT_TILE)
        tiles = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        values = normalised(torch.cat([thumbnails(pixels, NEXT_TILE).unsqueeze(1), tiles], dim=1).flatten(0, 1))
        sizes = torch.tensor([[height, width]] * count)
        seen = self.model.model.get_image_features(values.unflatten(0, (count, -1)), image_sizes=sizes, return_dict=True)
        return torch.stack(list(seen.pooler_output))

    def visual_tokens(self, pixels: Tensor) -> int:
        rows, columns = (size // PATCH_SIZE for size in pixels.shape[2:])
        return (NEXT_TILE // PATCH_SIZE) ** 2 + rows * (columns + 1)


def thumbnails(pixels: Tensor, side: int = TILE) -> Tensor:
    """Pictures reduced to the size of a tile, as the processor does it; bytes."""
    pictures = (Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC) for picture in pixels)
    return torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def student(name: str, seed: int) -> Student:
    """An untrained student."""
    torch.manual_seed(seed)
    kind = {"qwen2-vl": QwenStudent, "internvl": InternvlStudent, "llava-next": NextStudent}.get(name, Student)
    return kind(ARCHITECTURES[name]())


def inherit(learner: Student, demo: Any) -> None:
    """Start with the demo's weights where the new model has a place for them.

    Keys and values of heads that share one from now on are averaged. Layers in front of the demo's own add nothing at first.
    """
    own, new_layers = learner.model.state_dict(), len(learner.language.layers) - len(demo.model.language_model.layers)
    for name, weight in [*demo.state_dict().items(), *_tower(learner, demo).items()]:
        place = own.get(_moved(name, new_layers))
        if place is None:
            continue
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            place[: len(weight)].copy_(weight)
            place[len(weight) :].normal_(std=float(weight.std()))
        elif "language_model" in name and name.endswith(("k_proj.weight", "v_proj.weight")):
            head_dim = demo.config.text_config.head_dim
            place.copy_(weight.unflatten(0, (place.shape[0] // head_dim, -1, head_dim)).mean(dim=1).flatten(0, 1))
        elif place.shape == weight.shape:
            place.copy_(weight)
    for layer in learner.language.layers[:new_layers]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def _tower(learner: Student, demo: Any) -> dict[str, Tensor]:
    found = TOWERS.get(type(learner))
    return found(demo) if found else {}


def _moved(name: str, layers: int) -> str:
    """The place of a demo's weight in a language model with more layers before the demo's."""
    return re.sub(r"(language_model\.layers\.)(\d+)", lambda found: f"{found[1]}{int(found[2]) + layers}", name)


def _scale(demo: Any) -> float:
    """About what the demo's norm multiplies its embedded patches by; the other towers have no such norm."""
    tower = demo.model.vision_tower
    norm, patches = tower.pre_layrnorm, tower.embeddings.patch_embedding.weight.detach().flatten(1)
    return float(norm.weight.detach().abs().mean() / patches.norm(dim=1).mean())


def _qwen_tower(demo: Any) -> dict[str, Tensor]:
    """Its blocks, and its patches' embedding for a frame that is shown twice."""
    weights = dict(demo.model.vision_tower.named_parameters())
    patches = weights["embeddings.patch_embedding.weight"] * _scale(demo)
    found = {"model.visual.patch_embed.proj.weight": patches.unsqueeze(2).expand(-1, -1, 2, -1, -1) / 2}
    for number in range(VISION["num_hidden_layers"]):
        old, new = f"encoder.layers.{number}", f"model.visual.blocks.{number}"
        for kind in ("weight", "bias"):
            found[f"{new}.attn.qkv.{kind}"] = torch.cat([weights[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            found |= {f"{new}.{ours}.{kind}": weights[f"{old}.{theirs}.{kind}"] for theirs, ours in QWEN_PARTS.items()}
    projector = "multi_modal_projector.linear_"
    return found | {
        f"model.visual.merger.mlp.{place}.{kind}": demo.state_dict()[f"model.{projector}{number}.{kind}"]
        for place, number in ((0, 1), (2, 2))
        for kind in ("weight", "bias")
    }


def _internvl_tower(demo: Any) -> dict[str, Tensor]:
    """Its layers, and the places of its first quarter as those of every tile."""
    weights = dict(demo.model.vision_tower.named_parameters())
    scale = _scale(demo)
    places = weights["embeddings.position_embedding.weight"]
    quarter = places[1:].view(GRID, GRID, -1)[: GRID // 2, : GRID // 2].flatten(0, 1)
    found = {
        "model.vision_tower.embeddings.patch_embeddings.projection.weight": weights["embeddings.patch_embedding.weight"] * scale,
        "model.vision_tower.embeddings.position_embeddings": torch.cat([places[:1], quarter]).unsqueeze(0) * scale,
        "model.vision_tower.embeddings.cls_token": weights["embeddings.class_embedding"].view(1, 1, -1) * scale,
    }
    for number in range(VISION["num_hidden_layers"]):
        old, new = f"encoder.layers.{number}", f"model.vision_tower.encoder.layer.{number}"
        for kind in ("weight", "bias"):
            found |= {f"{new}.{ours}.{kind}": weights[f"{old}.{theirs}.{kind}"] for theirs, ours in INTERNVL_PARTS.items()}
    return found


TOWERS = {QwenStudent: _qwen_tower, InternvlStudent: _internvl_tower}
QWEN_PARTS = {
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
INTERNVL_PARTS = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.projection_layer",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
