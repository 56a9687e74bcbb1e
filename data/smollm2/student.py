"""What is trained of the backbone on SmolLM2, and how several questions an image become one sequence for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from data.backbone.features import EncodedScenes, patch_targets
from data.backbone.hints import GLYPHS, HEADS, NOUN_NAMES
from data.backbone.student import outputs_of
from data.scenes.ask import Question
from data.scenes.draw import COLORS, SIZES
from data.smollm2.language import END, PREFIX, SUFFIX
from idsel_core.backbones._shared.qk_capture import capture_qk

RANK = 16
PATCH_LAYER, GAZE_LAYER, ASKED_LAYER = 4, 10, 20
"""Layers, counted from 1, whose output tells what lies under each patch, whose first two heads look, and whose output
tells what is asked about. All three are hints, which exist only while training."""
GAZING = 2


class Student(nn.Module):
    """A projector and low-rank additions to every matrix of the language model, with heads for the hints."""

    mean: Tensor
    std: Tensor

    def __init__(self, language_model: LlamaForCausalLM, width: int) -> None:
        super().__init__()
        config = language_model.config
        hidden = config.hidden_size
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.language_model = get_peft_model(
            language_model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=matrices)
        )
        self.patch_heads = nn.Linear(hidden, sum(HEADS.values()))
        self.asked_heads = nn.Linear(hidden, 2 * sum(HEADS.values()))

    def forward(self, features: Tensor, packed: Packed) -> Outputs:
        inner = self.language_model.base_model.model
        layers, embed = inner.model.layers, inner.get_input_embeddings()
        visual = self.projector((features.float() - self.mean) / self.std).to(embed.weight.dtype)
        prefix = embed(packed.prefix).expand(len(features), -1, -1)
        gazing = capture_qk(layers[GAZE_LAYER - 1].self_attn)
        with outputs_of(layers[PATCH_LAYER - 1], layers[ASKED_LAYER - 1]) as seen, gazing as looking:
            hidden = inner.model(
                inputs_embeds=torch.cat([prefix, visual, embed(packed.ids)], 1),
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            ).last_hidden_state
        tokens = slice(prefix.shape[1], prefix.shape[1] + visual.shape[1])
        under, found = (F.rms_norm(states.float(), states.shape[-1:]) for states in seen)
        query, key, scale = looking.tensors()
        # (questions, gazing heads, width): the first heads of the queries share the first head of the keys
        asking = query[packed.due_row, :GAZING, packed.due_column].float()
        gaze = torch.einsum("qhd,qtd->qht", asking, key[:, 0, tokens].float()[packed.due_row]) * scale
        return Outputs(
            logits=inner.lm_head(hidden[packed.row, packed.column]).float(),
            patches=self.patch_heads(under[:, tokens]),
            asked=self.asked_heads(found[packed.due_row, packed.due_column]).unflatten(1, (2, -1)),
            gaze=gaze,
        )

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that training changes, and the standardisation, by name."""
        changed = {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}
        return changed | {"mean": self.mean, "std": self.std}

    def adopt(self, trained: dict[str, Tensor]) -> None:
        """Take over what `trained` gave; raises ValueError where a name is missing or unknown."""
        if set(trained) != set(self.trained()):
            raise ValueError(f"not the parameters of this model: {sorted(set(trained) ^ set(self.trained()))[:3]}")
        with torch.no_grad():
            for name, value in self.trained().items():
                value.copy_(trained[name])


@dataclass(frozen=True)
class Outputs:
    """What the student says.

    `logits` (answer tokens, vocabulary), `patches` (scenes, tokens, heads), `asked` (questions, 2, heads) and `gaze`
    (questions, 2, tokens), which holds attention logits.
    """

    logits: Tensor
    patches: Tensor
    asked: Tensor
    gaze: Tensor


class Packed:
    """Several questions an image in one sequence: prefix, visual tokens, then each question with its answer.

    Each question attends to the image and to itself alone, and stands at the positions it would have alone.

    Parameters
    ----------
    questions : list[list[Question]]
        The questions of each image.
    visual : int
        How many visual tokens an image has.
    words : Words
        The tokenizer's ids.
    device : torch.device
        Where the tensors are needed.
    """

    def __init__(self, questions: list[list[Question]], visual: int, words: Words, device: torch.device) -> None:
        rows = [[(words.ids(q.text + SUFFIX), words.ids(q.answer + END)) for q in qs] for qs in questions]
        length = max(sum(len(asked) + len(said) - 1 for asked, said in row) for row in rows)
        start = len(words.prefix) + visual
        ids = np.full((len(rows), length), words.pad)
        segment = np.full((len(rows), length), -1)
        positions = np.zeros((len(rows), length), np.int64)
        places, due = [], []
        for b, row in enumerate(rows):
            at = 0
            for k, (asked, said) in enumerate(row):
                read = [*asked, *said[:-1]]
                ids[b, at : at + len(read)], segment[b, at : at + len(read)] = read, k + 1
                positions[b, at : at + len(read)] = np.arange(start, start + len(read))
                first = start + at + len(asked) - 1
                due.append((b, first))
                places += [(b, first + i, token, len(due) - 1) for i, token in enumerate(said)]
                at += len(read)
        segments = torch.from_numpy(np.pad(segment, ((0, 0), (start, 0)))).to(device)
        causal = torch.ones(start + length, start + length, dtype=torch.bool, device=device).tril()
        shared = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        self.mask = (shared & causal)[:, None]
        self.ids = torch.from_numpy(ids).to(device)
        self.prefix = torch.tensor([words.prefix], device=device)
        opening = np.broadcast_to(np.arange(start), (len(rows), start))
        self.positions = torch.from_numpy(np.concatenate([opening, positions], 1)).to(device)
        self.row, self.column, self.target, self.question = torch.tensor(places, device=device).T
        self.due_row, self.due_column = torch.tensor(due, device=device).T

    def right(self, logits: Tensor) -> Tensor:
        """Return of which questions greedy decoding would write the whole answer, bool (questions,)."""
        wrong = (logits.argmax(-1) != self.target).float()
        return torch.zeros(len(self.due_row), device=logits.device).index_add(0, self.question, wrong) == 0

    def loss(self, logits: Tensor) -> Tensor:
        """Return the mean over questions of the cross-entropy of the whole answer."""
        return F.cross_entropy(logits, self.target, reduction="sum") / len(self.due_row)


class Words:
    """The token ids that packing needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._known: dict[str, list[int]] = {}
        self.pad = tokenizer.pad_token_id
        self.prefix = self.ids(PREFIX)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text."""
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]


def word_targets(scenes: EncodedScenes, embedding: Tensor, words: Words) -> Tensor:
    """Return, for each patch, the mean embedding of the words that name what lies under it.

    Parameters
    ----------
    scenes : EncodedScenes
        The scenes.
    embedding : Tensor
        The language model's embeddings, float32 (vocabulary, hidden).
    words : Words
        The tokenizer's ids.

    Returns
    -------
    Tensor
        float32 (scenes, tokens, hidden).
    """
    nouns, colors, sizes = NOUN_NAMES, list(COLORS), list(SIZES)
    names: dict[tuple[int, ...], Tensor] = {}
    result = []
    for things in scenes.things:
        looks = patch_targets(things, scenes.side, nouns, colors, GLYPHS)[:, :4].astype(int)
        for noun, color, glyph, large in map(tuple, np.unique(looks, axis=0)):
            if (noun, color, glyph, large) not in names:
                said = [sizes[large], colors[color], nouns[noun], *([GLYPHS[glyph]] if glyph >= 0 else [])]
                text = "".join(f" {word}" for word in said) if noun >= 0 else " background"
                names[noun, color, glyph, large] = embedding[words.ids(text)].mean(0)
        result.append(torch.stack([names[tuple(look)] for look in looks.tolist()]))
    return torch.stack(result)


def start_projector(student: Student, features: Tensor, targets: Tensor, ridge: float = 1.0) -> float:
    """Set the projector's second matrix in closed form, by ridge regression from its random first one to word targets.

    Parameters
    ----------
    student : Student
        Its projector is changed, and its standardisation is set from the features.
    features : Tensor
        Encoder features, (samples, width).
    targets : Tensor
        What the projector should give, float32 (samples, hidden).
    ridge : float
        Penalty of the squared weights, in units of one sample's.

    Returns
    -------
    float
        The share of the targets' variance that the projector explains on these samples.
    """
    student.mean.copy_(features.float().mean(0))
    student.std.copy_(features.float().std(0))
    first, _, second = student.projector
    with torch.no_grad():
        inside = F.gelu(first((features.float() - student.mean) / student.std)).double()
        center, wanted = inside.mean(0), targets.double().mean(0)
        spread = inside - center
        gram = spread.T @ spread + ridge * torch.eye(inside.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, spread.T @ (targets.double() - wanted)).T
        second.weight.copy_(weight)
        second.bias.copy_(wanted - weight @ center)
        left = targets.double() - inside @ weight.T - second.bias.double()
    return float(1 - left.square().sum() / (targets.double() - wanted).square().sum())
