"""Tune a small text tower against the frozen vision tower, for the relevance of patches to a question.

    python -m data.backbone.companion --help

Locked-image tuning on the encoded training scenes: a question's embedding is drawn to the patches of the objects that
it asks about, away from all other patches of its image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange
from transformers import BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from data.backbone.features import FULL, EncodedScenes, covers, load_shards
from data.backbone.language import SUFFIX, build_tokenizer
from data.backbone.tower import tower_config
from data.scenes.ask import ask
from data.scenes.draw import Scene

HELD_OUT = 100


def companion_config() -> VisionTextDualEncoderConfig:
    """Return the configuration: the backbone's tower, a two-layer text tower over the same vocabulary."""
    text = BertConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return VisionTextDualEncoderConfig.from_vision_text_configs(tower_config(), text, projection_dim=128)


def draw_batch(
    rng: np.random.Generator, scenes: EncodedScenes, indices: np.ndarray, questions: int
) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Return patches, the questions' texts, the image of each question and the patches that each is about."""
    texts, owners, masks = [], [], []
    for at, i in enumerate(indices):
        things = scenes.things[i]
        for question in ask(rng, Scene(None, things, scenes.side), questions):
            if question.about:
                texts.append(f"{question.text} {SUFFIX}")
                owners.append(at)
                masks.append(np.any([covers(things[k], scenes.side) for k in question.about], axis=0))
    return scenes.features[indices].float(), texts, torch.tensor(owners), torch.from_numpy(np.stack(masks))


def similarities(
    model: VisionTextDualEncoderModel, tokenizer, patches: Tensor, texts: list[str], owners: Tensor
) -> Tensor:
    """Return the cosine of each question with each patch of its image, (questions, tokens)."""
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    text = model.get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
    visual = F.normalize(model.visual_projection(patches), dim=-1)
    return torch.einsum("qd,qnd->qn", F.normalize(text, dim=-1), visual[owners])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="folder of encoded scenes")
    parser.add_argument("--out", type=Path, default=Path("data/backbone/companion.safetensors"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8, help="scenes a step")
    parser.add_argument("--questions", type=int, default=12, help="questions a scene and step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--limit", type=int, default=3000, help="encoded scenes to read")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    scenes = load_shards(FULL, args.cache, args.limit)
    tokenizer = build_tokenizer()
    model = VisionTextDualEncoderModel(companion_config())
    model.vision_model.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=args.steps)
    progress = trange(args.steps, desc="tune")
    for _ in progress:
        indices = rng.integers(HELD_OUT, len(scenes.things), args.batch)
        patches, texts, owners, positive = draw_batch(rng, scenes, indices, args.questions)
        logits = similarities(model, tokenizer, patches, texts, owners) * model.logit_scale.exp()
        loss = (logits.logsumexp(1) - logits.masked_fill(~positive, -torch.inf).logsumexp(1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    with torch.inference_mode():
        patches, texts, owners, positive = draw_batch(rng, scenes, np.arange(HELD_OUT), 6)
        best = similarities(model, tokenizer, patches, texts, owners).topk(16, 1).indices
        print(f"held out: {positive.gather(1, best).float().mean():.3f} of the 16 best patches lie on what is asked")
    kept = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k.startswith(kept)}
    temporary = args.out.with_suffix(".part")
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
