"""The untrained demo model: a LLaVA-1.5 architecture small enough to train on a laptop, and its processor."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from converters.data.demo.shapes import CANVAS_SIZE, vocabulary

PATCH_SIZE = 8
GRID_SIZE = CANVAS_SIZE // PATCH_SIZE
VISUAL_TOKENS = GRID_SIZE * GRID_SIZE
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
DEMO_NAMES = {"image_token": "<image>"}
ROLES = ("USER:", "ASSISTANT:")
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
WORD_EMBEDDING_STD = 0.5  # large enough that sums of a few word embeddings stay apart; the projector is aligned to such sums
LINEAR_STD = 0.05
QUERY_STD = 0.12  # a patch that holds the word then scores about two above one that does not
# LLaVA-1.5's turns, with the end of sequence after each answer; a turn's content is a string or a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(
    more: Sequence[str] = (), special: Sequence[str] = (), named: Mapping[str, str] = DEMO_NAMES
) -> PreTrainedTokenizerFast:
    """One token per word, capitals ignored; a beginning of sequence is added as Llama's tokenizer does.

    After the demo's words come `more` words and `special` tokens; `named` are the tokens that a processor asks for by attribute.
    """
    words = [*SPECIAL_TOKENS, *ROLES, *vocabulary(), *more, *special]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*SPECIAL_TOKENS, *special)])
    tokenizer.add_tokens([AddedToken(role, special=False, normalized=False) for role in ROLES])
    start = ("<s>", SPECIAL_TOKENS.index("<s>"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=dict(named),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor(more: Sequence[str] = ()) -> LlavaProcessor:
    """The demo's processor, its tokenizer with `more` words."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": CANVAS_SIZE},
        crop_size={"height": CANVAS_SIZE, "width": CANVAS_SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(more),
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=8,
        image_size=CANVAS_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        initializer_range=LINEAR_STD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The model with random weights; the projector starts at the usual scale of a linear layer, not at a language model's."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(tokenizer))
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=WORD_EMBEDDING_STD)
    model.model.multi_modal_projector.linear_1.reset_parameters()
    model.model.multi_modal_projector.linear_2.reset_parameters()
    for layer in model.model.language_model.layers:
        prefer_equal_tokens(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.head_dim)
    return model


def prefer_equal_tokens(query: Tensor, key: Tensor, head_dim: int) -> None:
    """Start with keys equal to queries, so that a word attends to the patches that contain its embedding.

    Query and key are projection weights, (heads * head_dim, hidden). Rotary
    embeddings turn the fast half of each head's dimensions too quickly to match at a distance: the slow half is made larger.
    """
    fast = torch.arange(query.shape[0]) % (head_dim // 2) < head_dim // 4
    nn.init.normal_(query, std=QUERY_STD)
    with torch.no_grad():
        query[fast] *= 0.5
        key.copy_(query)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a complete Hugging Face folder with bfloat16 weights; the model in memory stays as it is."""
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    copy = LlavaForConditionalGeneration(model.config)
    nn.Module.to(copy, torch.bfloat16)
    copy.load_state_dict(weights)
    tokenizer = processor.tokenizer
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=16,
        do_sample=False,
    )
    copy.save_pretrained(folder)
    processor.save_pretrained(folder)
