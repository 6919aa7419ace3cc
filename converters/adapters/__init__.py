"""Adapters (LoRA and its kin, as PEFT writes them) of a dense model: put in a pruned model's order, or merged before pruning."""
