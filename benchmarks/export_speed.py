"""Speed of exported decoders on a CPU: plans of several budgets against the dense graph and against PyTorch, all in one run, in turns.

    python benchmarks/export_speed.py --hidden 2048 --heads 16 --neurons 5504 --layers 4 --side 24 --budgets 0.25,0.12 --rounds 9

Random weights, which are a temporary folder's. The last line is one JSON object.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from make_random_llava import write

from converters.checkpoint.convert import Provenance, convert
from converters.checkpoint.reader import open_checkpoint, open_converted
from converters.checkpoint.source import Source
from converters.export.onnx.session import Exported, open_export
from converters.export.onnx.target import export
from converters.export.onnx.timing import TimedInputs, TimedSide, Times, export_side, given, times, torch_side
from converters.export.request import ExportRequest
from converters.planning.cost import cost
from converters.planning.recipes import make_plan
from converters.runtime.plan import Grid

PATCH = 14


def main() -> None:
    asked = _parse()
    torch.set_num_threads(asked.threads)
    grid = Grid(asked.side, asked.side)
    what = given((grid,), asked.text_tokens, 1, asked.hidden, multimodal=False)
    with TemporaryDirectory(dir=asked.folder) as folder:
        sides, shares = _sides(asked, grid, what, Path(folder))
        found = times(sides, "dense", asked.rounds, asked.steps)
    lines = [_line(name, found, shares) for name in sides]
    for line in lines:
        print(line)
    print(json.dumps({"setting": {**vars(asked), "folder": None}, "versions": _versions(), "machine": platform.machine(), "sides": lines}))


def _sides(asked: argparse.Namespace, grid: Grid, what: TimedInputs, folder: Path) -> tuple[dict[str, TimedSide], dict[str, float]]:
    """The dense graph, each plan's, and with --torch the same in PyTorch. Shares are of the dense FLOPs, text included."""
    write(folder / "dense", _config(asked), torch.float32, 0, False)
    checkpoint = open_checkpoint(folder / "dense")
    sides, shares = {}, {"dense": 1.0}
    for number, budget in enumerate(asked.budgets.split(",")):
        plan = make_plan(asked.recipe, None, checkpoint.sizes, (grid,), float(budget))
        out = convert(checkpoint, plan, folder / budget, Provenance(Source("random", folder), "benchmark"))
        opened = _exported(out, grid, asked)
        if not number:
            sides["dense"] = export_side(opened, what, dense=True)
        sides[budget] = export_side(opened, what)
        shares[budget] = cost(plan, asked.text_tokens).total_share
        if asked.torch:
            model = _torch_model(out)
            if not number:
                sides["torch dense"], shares["torch dense"] = torch_side(model, what, dense=True), 1.0
            sides[f"torch {budget}"], shares[f"torch {budget}"] = torch_side(model, what), shares[budget]
    return sides, shares


def _exported(out: Path, grid: Grid, asked: argparse.Namespace) -> Exported:
    converted = open_converted(out)
    export(ExportRequest(converted.open_tensors(), converted.plan, (grid,), opset=asked.opset, bits=asked.bits))
    return open_export(out, threads=asked.threads)


def _torch_model(out: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    from converters.runtime.registration import register

    register()
    return AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()


def _line(name: str, found: Times, shares: dict[str, float]) -> dict[str, Any]:
    prefill, decode = found.prefill[name], found.decode.get(name)
    return {
        "side": name,
        "flops": round(shares[name], 4),
        "seconds": round(prefill.median, 4),
        "spread": round(prefill.spread, 4),
        "of_dense": round(prefill.ratio, 4),
        "flops_over_time": round(shares[name] / prefill.ratio, 3),
        "decode_ms": None if decode is None else round(1000 * decode.median, 2),
    }


def _config(asked: argparse.Namespace) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(
        (Path(__file__).parent.parent / "converters" / "bench" / "configs" / "llava-1.5-7b.json").read_text()
    )
    config["text_config"] |= {
        "hidden_size": asked.hidden, "intermediate_size": asked.neurons, "num_hidden_layers": asked.layers,
        "num_attention_heads": asked.heads, "num_key_value_heads": asked.heads, "head_dim": asked.hidden // asked.heads,
        "vocab_size": 1024, "pad_token_id": 1001,
    }  # fmt: skip
    config["vision_config"] |= {
        "image_size": asked.side * PATCH,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
    }
    return config | {"image_token_index": 1000, "image_seq_length": asked.side**2, "pad_token_id": 1001}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "onnx", "onnx-ir")} | {"onnxruntime": _onnxruntime()}


def _onnxruntime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 2048), ("heads", 16), ("neurons", 5504), ("layers", 4), ("side", 24), ("text-tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("rounds", 9), ("steps", 8), ("threads", 1), ("opset", 23)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--budgets", default="0.25,0.12")
    parser.add_argument("--recipe", default="interlaced")
    parser.add_argument("--bits", type=int, choices=(4, 8))
    parser.add_argument("--torch", action="store_true", help="time PyTorch too")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
