"""Ask an onnxruntime-genai package questions: `python ask_genai.py FOLDER QUESTIONS.json`; needs onnxruntime-genai, transformers, pillow.

QUESTIONS.json is a list of `image` (a file), `question` and `tokens`, the most to generate. Prints one JSON list of answers.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from PIL import Image
from transformers import AutoProcessor


def answer(model: Any, processor: Any, image: str, question: str, tokens: int) -> str:
    """The greedy answer, by the runtime's own generator and sampler."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=text, images=Image.open(image), return_tensors="np")
    tensors = genai.NamedTensors()
    tensors["input_ids"] = inputs["input_ids"].astype(np.int32)
    tensors["pixel_values"] = inputs["pixel_values"]
    tensors["num_image_tokens"] = np.array([(inputs["input_ids"] == processor.image_token_id).sum()])
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=inputs["input_ids"].shape[1] + tokens)
    generator = genai.Generator(model, parameters)
    generator.set_inputs(tensors)
    while not generator.is_done():
        generator.generate_next_token()
    new = generator.get_sequence(0)[inputs["input_ids"].shape[1] :]
    return str(processor.decode(new, skip_special_tokens=True)).strip()


def main() -> None:
    folder, questions = sys.argv[1:]
    model, processor = genai.Model(folder), AutoProcessor.from_pretrained(folder)
    with open(questions, encoding="utf-8") as file:
        asked = json.load(file)
    print(json.dumps([answer(model, processor, one["image"], one["question"], one["tokens"]) for one in asked]))


if __name__ == "__main__":
    main()
