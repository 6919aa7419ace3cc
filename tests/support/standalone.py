"""A program that has transformers and cannot import this project."""

SCRIPT = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("converters", "yopo_cli"):
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
import torch
from transformers import AutoModelForImageTextToText

source, saved, given, result = sys.argv[1:]
inputs = torch.load(given)
model, info = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
model.save_pretrained(saved)
again = AutoModelForImageTextToText.from_pretrained(saved, trust_remote_code=True)
with torch.inference_mode():
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    same = again(**inputs).logits.equal(logits)
model.save_pretrained(saved)  # after running, when matrices are split
loading = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
torch.save({"logits": logits, "tokens": tokens, "same": same, "info": loading, "path": model.path_report()}, result)
"""
