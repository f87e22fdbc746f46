"""Published files of ChangeVG at small size, random weights, and answers by transformers and peft alone.

    write_files(folder)     # base/, adapter/, adapter-old-names/, mci/, expected.json, expected.safetensors

The reference shares no code with `deltavlm.model.changevg`: the LoRA is peft's and not merged, the pixels go
through the model with each question, prompts are whole texts, and tokens are chosen one by one.
`benchmarks/parity.py` proves the product against numbers of the original code.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import mci_reference

SEED, STEPS, IMAGE_PX, IMAGE_TOKENS = 3, 8, 252, 81
HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
CAPTION = "Please describe the changes in <image> and <image>"
COUNT = "How many roads have been changed in these two images:<image> and <image>"
TEXTS = [CAPTION, COUNT, "Please describe the changes.", "Is <|im_end|> text?"]


def tiny_base(folder: Path) -> Any:
    """Write a tiny Qwen2.5-VL with the sizes of patches of the published one, in its published names."""
    from tests.tiny_hf import SPECIAL, _tokenizer

    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 48}
    windows = {"window_size": 112, "fullatt_block_indexes": [1], "patch_size": 14, "spatial_merge_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**sizes, **heads, "vocab_size": len(tokenizer) + 5, "rope_parameters": rope},
        vision_config={**tower, **windows},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        bos_token_id=ids["<pad>"],
        eos_token_id=ids["<|im_end|>"],
    )
    torch.manual_seed(SEED)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than a fresh start, so that differences show
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.5))
    model.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    published = {
        name.removeprefix("model.")
        if name.startswith("model.visual.")
        else name.replace("model.language_model.", "model."): tensor
        for name, tensor in weights.items()
    }
    save_file(published, file, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessor(max_pixels=262_144).save_pretrained(folder)
    ends = [ids["<|im_end|>"], ids["<pad>"]]
    settings = {"eos_token_id": ends, "pad_token_id": ids["<pad>"], "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True}))
    return model


def add_adapter(model: Any, folder: Path) -> Any:
    """Model with a random LoRA on the linear layers of the language model and of the vision blocks."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".layers." in name or ".blocks." in name)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, target_modules=layers))
    torch.manual_seed(SEED + 1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder, save_embedding_layers=False)
    weights = load_file(folder / "adapter_model.safetensors")
    old = folder.with_name("adapter-old-names")
    old.mkdir()
    (old / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    renamed = {
        re.sub(r"model\.model\.(language_model\.layers|visual)\.", _older_name, name): tensor
        for name, tensor in weights.items()
    }
    save_file(renamed, old / "adapter_model.safetensors")
    return adapted.eval()


def _older_name(match: re.Match[str]) -> str:
    return "model.visual." if match[1] == "visual" else "model.model.layers."


def fill(text: str) -> str:
    """Text of a turn with the pictures in their places."""
    return text.replace("<image>", PICTURE)


def write_files(folder: Path) -> None:
    """Write the published files, and what transformers and peft give for two pairs."""
    mci = mci_reference.write_files(folder / "mci", pairs=2)
    adapted = add_adapter(tiny_base(folder / "base"), folder / "adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    processor = transformers.Qwen2VLImageProcessor.from_pretrained(folder / "base")
    arrays: dict[str, Tensor] = {}
    for date, images in zip("AB", mci.images, strict=True):
        arrays[f"uint8_{date}"] = torch.from_numpy(images).permute(0, 2, 3, 1).contiguous()
    guides = []
    for pair, (caption, counts) in enumerate(zip(mci.captions, mci.counts, strict=True)):
        guides.append({"pair": pair, "caption": caption, "counts": counts})
    pixels = []
    for pair in range(2):
        inputs = [_patches(processor, mci.images[date][pair]) for date in range(2)]
        pixels.append(inputs)
        for date, patches in zip("AB", inputs, strict=True):
            arrays[f"p{pair}/pixel_values_{date}"] = patches[::18].contiguous()
            output = adapted.get_image_features(patches, torch.tensor([[1, 18, 18]])).pooler_output[0]
            arrays[f"p{pair}/features_{date}"] = output.detach().clone()
    cases: list[dict[str, Any]] = []
    for number, (pair, texts, penalty) in enumerate(
        [
            (0, [CAPTION], 1.0),
            (0, [COUNT], 1.0),
            (1, [CAPTION], 1.0),
            (1, ["Have there been any changes in <image> and <image>?", "How many roads?"], 1.0),
            (1, ["Please describe the changes.", "How many roads have been changed?"], 1.3),
        ]
    ):
        first, prompt, turns = "<image>" not in texts[0], HEAD, []
        sentence = (
            f"Please refer to this description:{mci.captions[pair].replace('.', '').strip()}"
            ".Modify or correct it."
        )
        for index, text in enumerate(texts):
            guided = (first and index == 0) or text == CAPTION
            shown = f"{sentence}{text}" if guided else text
            pictures = f"Picture 1: {PICTURE}Picture 2: {PICTURE}" if first and index == 0 else ""
            prompt += f"{'<|im_start|>user' + chr(10) if index else ''}{pictures}{fill(shown)}{REPLY}"
            ids = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS))["input_ids"]
            answer, logits = _greedy(adapted, ids, torch.cat(pixels[pair]), penalty)
            reply = tokenizer.decode(answer, skip_special_tokens=True)
            stem = f"c{number}t{index}" if len(texts) > 1 else f"c{number}"
            arrays[f"{stem}/input_ids"], arrays[f"{stem}/first_logits"] = torch.tensor(ids), logits
            turns.append({"text_of_turn": shown, "prompt": prompt, "token_ids": answer, "text": reply})
            prompt += f"{reply}<|im_end|>\n"
        case = {"case": number, "pair": pair, "template": "images-first" if first else "inline"}
        case |= {"repetition_penalty": penalty, "max_new_tokens": STEPS}
        cases.append(case | ({"turns": turns} if len(turns) > 1 else turns[0]))
    expected = {"kind": "changevg", "pixel_row_stride": 18, "guides": guides, "cases": cases}
    (folder / "expected.json").write_text(json.dumps(expected))
    save_file({name: each.contiguous() for name, each in arrays.items()}, folder / "expected.safetensors")


def _patches(processor: Any, image: np.ndarray) -> Tensor:
    """Patches of an image (3, 256, 256), resized by Pillow."""
    resized = Image.fromarray(image.transpose(1, 2, 0)).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    patches: Tensor = processor(images=[resized], return_tensors="pt")["pixel_values"]
    return patches


@torch.no_grad()
def _greedy(model: Any, ids: list[int], pixels: Tensor, penalty: float) -> tuple[list[int], Tensor]:
    """Greedy answer of STEPS tokens at most, each by the whole sequence; and the first logits."""
    token, ends = model.config.image_token_id, {model.config.eos_token_id, model.config.bos_token_id}
    answer: list[int] = []
    first: Tensor | None = None
    while len(answer) < STEPS and not (answer and answer[-1] in ends):
        sequence = torch.tensor([[*ids, *answer]])
        logits = model(
            input_ids=sequence,
            attention_mask=torch.ones_like(sequence),
            mm_token_type_ids=(sequence == token).int(),
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, 18, 18]] * 2),
        ).logits[0, -1]
        first = logits.clone() if first is None else first
        for seen in {*ids, *answer}:
            logits[seen] = logits[seen] * penalty if logits[seen] < 0 else logits[seen] / penalty
        answer.append(int(logits.argmax()))
    assert first is not None
    return answer, first
