"""Tiny random vision-language models of many architectures, as folders that transformers reads.

    folder = build("qwen2_5_vl", tmp_path / "model")

Each has a byte-level tokenizer, its processor and a chat template, so that `load_model(f"hf:{folder}")` and
`transformers serve` can use it. The weights are random: answers mean nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

IMAGE_PX = 32  # side of the images that the vision towers see
SEED = 20
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["yes no Yes No YES NO", "has anything changed between the two images", "two houses were built"] * 4
SPECIAL = (
    *(
        "<pad>",
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<video>",
        "<fake_token_around_image>",
    ),
    *("<end_of_utterance>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<start_of_image>", "<end_of_image>"),
    *("<image_soft_token>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|image_start|>", "<|image_end|>"),
    "<|img_thumbnail|>",
)
CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for item in message['content'] %}{% if item['type'] == 'image' %}IMAGE{% else %}{{ item['text'] }}\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class _Parts:
    """Configuration and processor of a tiny model."""

    config: Any
    processor: Any


def _tokenizer(**tokens: str) -> Any:
    """Byte-level tokenizer with the special tokens of all architectures; `tokens` are attributes of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens=tokens,
        model_max_length=4096,
    )


def _chat(image: str) -> str:
    return CHAT.replace("IMAGE", image)


def _text(tokenizer: Any, model_type: str = "qwen2", **values: Any) -> dict[str, Any]:
    """Configuration of a tiny language model."""
    return {
        "model_type": model_type,
        **SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **values,
    }


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _qwen(kind: str) -> _Parts:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL; their tokens have positions in three dimensions."""
    tokenizer = _tokenizer()
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    patch = 8 if kind == "qwen3_vl" else 4
    tower: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": patch, "spatial_merge_size": 2}
    text = _text(tokenizer, model_type=f"{kind}_text")
    width, heads = SIZES["hidden_size"], SIZES["num_attention_heads"]
    part = width // heads // 8  # of the halves of a head, for rows and for columns
    if kind == "qwen3_vl":
        part = 1  # its heads have a size of their own
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2 * part, part, part]}
    if kind == "qwen2_vl":
        tower |= {"embed_dim": 16, "hidden_size": width, "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": width}
    if kind == "qwen2_5_vl":
        tower |= {"window_size": 16, "fullatt_block_indexes": [1]}
    if kind == "qwen3_vl":
        tower |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        text |= {"head_dim": 8}
        rope |= {"mrope_interleaved": True}
    config = getattr(transformers, f"{names[kind]}Config")(
        text_config=text | {"rope_parameters": rope},
        vision_config=tower,
        **_ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": IMAGE_PX * IMAGE_PX}
    pixels = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    video = transformers.Qwen3VLVideoProcessor if kind == "qwen3_vl" else transformers.Qwen2VLVideoProcessor
    processor = getattr(transformers, f"{names[kind]}Processor")(
        transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer,
        video(**pixels),
        chat_template=_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _Parts(config, processor)


def _internvl() -> _Parts:
    tokenizer = _tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = transformers.InternVLConfig(
        text_config=_text(tokenizer),
        vision_config={**TOWER, "image_size": [IMAGE_PX, IMAGE_PX], "patch_size": [8, 8]},
        image_seq_length=4,
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    square = {"height": IMAGE_PX, "width": IMAGE_PX}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=square, max_patches=2),
        tokenizer,
        transformers.InternVLVideoProcessor(size=square),
        image_seq_length=4,
        chat_template=_chat("<IMG_CONTEXT>\n"),
    )
    return _Parts(config, processor)


def _siglip() -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **TOWER, "image_size": IMAGE_PX, "patch_size": 8}


def _square() -> dict[str, Any]:
    return {"height": IMAGE_PX, "width": IMAGE_PX}


def _llava_interleave() -> _Parts:
    """LLaVA-NeXT-Interleave as converted: LLaVA with Qwen2 and SigLIP."""
    tokenizer = _tokenizer()
    config = transformers.LlavaConfig(
        text_config=_text(tokenizer),
        vision_config=_siglip() | {"vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.SiglipImageProcessor(size=_square()),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>\n"),
    )
    return _Parts(config, processor)


def _llava_onevision() -> _Parts:
    tokenizer = _tokenizer()
    grids = [[IMAGE_PX, IMAGE_PX], [IMAGE_PX, 2 * IMAGE_PX], [2 * IMAGE_PX, IMAGE_PX]]
    config = transformers.LlavaOnevisionConfig(
        text_config=_text(tokenizer),
        vision_config=_siglip() | {"vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=_square(), image_grid_pinpoints=grids),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=_square()),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>\n"),
    )
    return _Parts(config, processor)


def _idefics(name: str) -> _Parts:
    """Idefics3 or SmolVLM."""
    tokenizer = _tokenizer()
    config = getattr(transformers, f"{name}Config")(
        text_config=_text(tokenizer, model_type="llama"),
        vision_config={**TOWER, "image_size": IMAGE_PX, "patch_size": 8},
        scale_factor=2,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    edge = {"longest_edge": IMAGE_PX}
    images = getattr(transformers, f"{name}ImageProcessor")(size=edge, max_image_size=edge)
    arguments = [images, tokenizer]
    if name == "SmolVLM":
        arguments.append(
            transformers.SmolVLMVideoProcessor(
                size=edge, max_image_size=edge, video_sampling={"fps": 1, "max_frames": 4}
            )
        )
    processor = getattr(transformers, f"{name}Processor")(
        *arguments, image_seq_len=4, chat_template=_chat("<image>")
    )
    return _Parts(config, processor)


def _mistral3() -> _Parts:
    tokenizer = _tokenizer()
    config = transformers.Mistral3Config(
        text_config=_text(tokenizer, model_type="mistral", head_dim=8, sliding_window=None),
        vision_config={
            "model_type": "pixtral",
            **TOWER,
            "head_dim": 8,
            "image_size": IMAGE_PX,
            "patch_size": 8,
            "rope_parameters": ROPE,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": IMAGE_PX}, patch_size=8),
        tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        chat_template=_chat("[IMG]"),
    )
    return _Parts(config, processor)


def _gemma3() -> _Parts:
    """Gemma 3: layers with a sliding window, and image tokens that see each other in both directions."""
    tokenizer = _tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    config = transformers.Gemma3Config(
        text_config=_text(
            tokenizer,
            model_type="gemma3_text",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=_siglip() | {"vision_use_head": False},
        mm_tokens_per_image=4,
        **_ids(
            tokenizer,
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            image_token_index="<image_soft_token>",
        ),
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=_square()),
        tokenizer,
        chat_template="{{ bos_token }}" + _chat("<start_of_image>"),
        image_seq_length=4,
    )
    return _Parts(config, processor)


def _lfm2_vl() -> _Parts:
    """LFM2-VL: layers with short convolutions, whose state is part of the cache."""
    tokenizer = _tokenizer(
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail="<|img_thumbnail|>",
    )
    config = transformers.Lfm2VlConfig(
        text_config=_text(tokenizer, model_type="lfm2", layer_types=["conv", "full_attention"]),
        vision_config={
            "model_type": "siglip2_vision_model",
            **TOWER,
            "patch_size": 8,
            "num_patches": 16,
            "vision_use_head": False,
        },
        downsample_factor=2,
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    processor = transformers.Lfm2VlProcessor(
        transformers.Lfm2VlImageProcessor(
            encoder_patch_size=8,
            tile_size=IMAGE_PX,
            size=_square(),
            min_image_tokens=1,
            max_image_tokens=4,
            do_image_splitting=False,
        ),
        tokenizer,
        chat_template=_chat("<image>"),
    )
    return _Parts(config, processor)


BUILDERS: Mapping[str, Callable[[], _Parts]] = {
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: _qwen("qwen3_vl"),
    "internvl": _internvl,
    "llava": _llava_interleave,
    "llava_onevision": _llava_onevision,
    "idefics3": lambda: _idefics("Idefics3"),
    "smolvlm": lambda: _idefics("SmolVLM"),
    "mistral3": _mistral3,
    "gemma3": _gemma3,
    "lfm2_vl": _lfm2_vl,
}
"""Architectures by the name that transformers gives them (`model_type`)."""


def build(architecture: str, folder: Path, *, seed: int = SEED) -> Path:
    """Save a tiny random model of an architecture, and return its folder."""
    parts = BUILDERS[architecture]()
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(parts.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial weights are so small that images hardly matter
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return folder


def build_adapter(base: Path, folder: Path, *, seed: int = SEED) -> Path:
    """Save a random LoRA adapter of a tiny model, made by peft, and return its folder."""
    import peft

    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at what peft asks of it
        peft.get_peft_model(model, config).save_pretrained(folder)
    return folder
