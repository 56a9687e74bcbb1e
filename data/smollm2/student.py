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
from data.backbone.hints import COUNT_WEIGHTS, GLYPHS, NOUN_NAMES, head_sizes
from data.backbone.student import outputs_of
from data.scenes.ask import RELATIONS, Question
from data.scenes.draw import COLORS, SIZES
from data.smollm2.attention import NAME, Layout
from data.smollm2.language import END, PREFIX, SUFFIX
from idsel_core.backbones._shared.qk_capture import CapturedQK, capture_qk

RANK = 16
PATCH_LAYER, GAZE_LAYER, ASKED_LAYER, POINTER_LAYER = 4, 10, 20, 24
"""Layers, counted from 1, whose output tells what lies under each patch; whose first two heads look, while the third
counts; whose output tells what is asked about; and whose first head points to the right option. All are hints, which
exist only while training."""
GAZING = 2


class Student(nn.Module):
    """A projector and low-rank additions to every matrix of the language model, with heads for the hints.

    The heads tell as many nouns apart as `nouns` says.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, language_model: LlamaForCausalLM, width: int, nouns: int = len(NOUN_NAMES)) -> None:
        super().__init__()
        language_model.set_attn_implementation(NAME)
        config = language_model.config
        hidden = config.hidden_size
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.language_model = get_peft_model(
            language_model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=matrices)
        )
        self.nouns, self.told = nouns, sum(head_sizes(nouns).values())
        self.projector_heads = nn.Linear(hidden, self.told + 1)
        self.patch_heads = nn.Linear(hidden, self.told + 1)
        self.asked_heads = nn.Linear(hidden, 2 * self.told + len(RELATIONS) + 2)

    def projected(self, features: Tensor) -> Tensor:
        """Return what the projector makes of features, float32 (..., hidden)."""
        return self.projector(self.standard(features))

    def standard(self, features: Tensor) -> Tensor:
        """Return features less their mean, by their deviation, float32."""
        return (features.float() - self.mean) / self.std

    def opening(self, features: Tensor, prefix: Tensor) -> Tensor:
        """Return the input embeddings of the prefix and of the visual tokens, (scenes, start, hidden)."""
        embed = self.language_model.get_input_embeddings()
        visual = self.projected(features).to(embed.weight.dtype)
        return torch.cat([embed(prefix).expand(len(features), -1, -1), visual], 1)

    def projected_of_patches(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the projector alone tells of patches and of middles of objects: next to no work."""
        return told_by(self.projector_heads, self.projected(features))

    def under_patches(self, features: Tensor, prefix: Tensor, span: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what the first layers alone tell of each patch, without questions: little work beside `forward`."""
        return self.told_of_patches(self.first_layers(features, prefix, span))

    def first_layers(self, features: Tensor, prefix: Tensor, span: int | None = None) -> Tensor:
        """Return the states of visual tokens after the first layers, (scenes, tokens, hidden)."""
        states = self.opening(features, prefix)
        inner = self.language_model.base_model.model.model
        positions = opening_positions(prefix.shape[1], features.shape[1], span)[None].to(states.device)
        rotary = inner.rotary_emb(states, positions)
        for layer in inner.layers[:PATCH_LAYER]:
            states = layer(states, position_embeddings=rotary, position_ids=positions)
        return states[:, prefix.shape[1] :]

    def told_of_patches(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what states tell of patches, (scenes, tokens, heads), and of middles of objects, (scenes, tokens)."""
        return told_by(self.patch_heads, states)

    def forward(self, features: Tensor, packed: Packed) -> Outputs:
        inner = self.language_model.base_model.model
        layers, embed = inner.model.layers, inner.get_input_embeddings()
        gazing, pointing = (capture_qk(layers[layer - 1].self_attn) for layer in (GAZE_LAYER, POINTER_LAYER))
        with outputs_of(layers[PATCH_LAYER - 1], layers[ASKED_LAYER - 1]) as seen, gazing as looking, pointing as at:
            hidden = inner.model(
                inputs_embeds=torch.cat([self.opening(features, packed.prefix), embed(packed.ids)], 1),
                position_ids=packed.positions,
                use_cache=False,
                layout=packed.layout,
            ).last_hidden_state
        patches, middles = self.told_of_patches(seen[0][:, packed.visual])
        found = F.rms_norm(seen[1][packed.due_row, packed.due_column].float(), seen[1].shape[-1:])
        asked = self.asked_heads(found)
        asked, relation, apart = asked.split([2 * self.told, len(RELATIONS), 2], -1)
        image, text = packed.compared(looking, packed.due_row, packed.due_column, GAZING + 1)
        votes = torch.cat([image, text], -1).log_softmax(-1)[:, GAZING]
        return Outputs(
            logits=inner.lm_head(hidden[packed.row, packed.column]).float(),
            patches=patches,
            middles=middles,
            asked=asked.unflatten(1, (2, -1)),
            relation=relation,
            apart=apart,
            gaze=image[:, :GAZING, packed.visual],
            votes=votes,
            pointer=packed.compared(at, packed.due_row, packed.letter_column, 1)[1][:, 0],
        )

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that training changes, and the standardisation, by name."""
        changed = {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}
        return changed | {"mean": self.mean, "std": self.std}

    def adopt(self, trained: dict[str, Tensor]) -> None:
        """Take over what `trained` gave; raises ValueError where a name is missing or unknown.

        Heads that are missing, or for another number of nouns, stay as they are here: they exist only while training.
        """
        own = self.trained()
        wrong = {name for name in set(trained) ^ set(own) if name in trained or "_heads." not in name}
        if wrong:
            raise ValueError(f"not the parameters of this model: {sorted(wrong)[:3]}")
        with torch.no_grad():
            for name, value in trained.items():
                if own[name].shape == value.shape or "_heads." not in name:
                    own[name].copy_(value)


def told_by(heads: nn.Linear, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return what heads read in states: of what lies there (..., heads), and of middles of objects (...)."""
    told = heads(F.rms_norm(states.float(), states.shape[-1:]))
    return told[..., :-1], told[..., -1]


@dataclass(frozen=True)
class Outputs:
    """What the student says: the answers, and what the hints are about.

    `logits` (answer tokens, vocabulary); `patches` (scenes, tokens, heads) and `middles` (scenes, tokens); of each
    question `asked` (questions, 2, heads), `relation` (questions, 4) and `apart` (questions, 2), whether the first
    object lies right of and below the second; `gaze` (questions, 2, tokens) and `pointer` (questions, places), which
    hold attention logits; `votes` (questions, start + places), log attention to all tokens before the questions and to
    the question's own.
    """

    logits: Tensor
    patches: Tensor
    middles: Tensor
    asked: Tensor
    relation: Tensor
    apart: Tensor
    gaze: Tensor
    votes: Tensor
    pointer: Tensor


class Packed:
    """Several questions an image in one sequence: prefix, visual tokens, then each question with its answer.

    Each question attends to the image and to itself alone, and stands at the positions it would have alone. The
    positions of the visual tokens are spread over `span`, which is their number by default: after pruning, the same
    question stands at other positions, and it should read the same there.

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
    span : int, optional
        Over how many positions the visual tokens are spread.
    """

    def __init__(
        self,
        questions: list[list[Question]],
        visual: int,
        words: Words,
        device: torch.device,
        span: int | None = None,
    ) -> None:
        rows = [[(words.ids(q.text + SUFFIX), words.ids(q.answer + END)) for q in qs] for qs in questions]
        length = max(sum(len(asked) + len(said) - 1 for asked, said in row) for row in rows)
        start, behind = len(words.prefix) + visual, len(words.prefix) + (span or visual)
        ids = np.full((len(rows), length), words.pad)
        question, place = np.zeros((2, len(rows), length), np.int64)
        longest = max(len(asked) + len(said) - 1 for row in rows for asked, said in row)
        token = np.zeros((len(rows), max(map(len, rows)), longest), np.int64)
        positions = np.zeros((len(rows), length), np.int64)
        places, due, letters = [], [], []
        for b, row in enumerate(rows):
            at = 0
            for k, (asked, said) in enumerate(row):
                read = [*asked, *said[:-1]]
                here = slice(at, at + len(read))
                ids[b, here], question[b, here], place[b, here] = read, k, np.arange(len(read))
                token[b, k, : len(read)] = np.arange(at, at + len(read))
                positions[b, here] = np.arange(behind, behind + len(read))
                first = start + at + len(asked) - 1
                due.append((b, first))
                letters.append(first + max(0, len(said) - 3))
                places += [(b, first + i, token, len(due) - 1) for i, token in enumerate(said)]
                at += len(read)
        self.layout = Layout(start, *(torch.from_numpy(table).to(device) for table in (question, place, token)))
        self.ids = torch.from_numpy(ids).to(device)
        self.prefix = words.prefix_tensor(device)
        self.visual = slice(len(words.prefix), start)
        opening = opening_positions(len(words.prefix), visual, span).expand(len(rows), -1)
        self.positions = torch.cat([opening, torch.from_numpy(positions)], 1).to(device)
        self.row, self.column, self.target, self.question = torch.tensor(places, device=device).T
        self.due_row, self.due_column = torch.tensor(due, device=device).T
        self.letter_column = torch.tensor(letters, device=device)
        flat = [(q, ids) for qs, row in zip(questions, rows, strict=True) for q, (ids, _) in zip(qs, row, strict=True)]
        weights = [COUNT_WEIGHTS[q.answer] if q.question_type == "counting" else 1.0 for q, _ in flat]
        self.weights = torch.tensor(weights, device=device)
        self.counting = torch.tensor([q.question_type == "counting" for q, _ in flat], device=device)
        relations = [[q.question_type == "relation" and f" {word} " in q.text for word in RELATIONS] for q, _ in flat]
        self.relation = torch.tensor(relations, device=device)
        options = np.zeros((len(flat), longest), bool)
        for chosen, (q, _) in zip(options, flat, strict=True):
            if q.question_type == "choice":
                chosen[words.option(q)] = True
        self.option = torch.from_numpy(options).to(device)

    def compared(self, seen: CapturedQK, row: Tensor, column: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Return attention logits of the first heads, which share one head of keys, of a token of each question.

        Parameters
        ----------
        seen : CapturedQK
            Queries and keys of a layer.
        row, column : Tensor
            The scene and the place of the token, int64 (questions,).
        heads : int
            How many heads.

        Returns
        -------
        tuple[Tensor, Tensor]
            Over the tokens before the questions, float32 (questions, heads, start), and over the question's own,
            (questions, heads, places), -inf where it does not see them.
        """
        query, key, scale = seen.tensors()
        asking, key = query[row, :heads, column].float() * scale, key[:, 0].float()
        start = self.layout.start
        image = torch.einsum("qhd,qtd->qht", asking, key[row, :start])
        number = self.layout.question[row, column - start]
        own = self.layout.by_question(key[:, start:])[row, number]
        text = torch.einsum("qhd,qpd->qhp", asking, own)
        place = self.layout.place[row, column - start]
        later = torch.arange(text.shape[-1], device=text.device) > place[:, None, None]
        return image, text.masked_fill(later, -torch.inf)

    def right(self, logits: Tensor) -> Tensor:
        """Return of which questions greedy decoding would write the whole answer, bool (questions,)."""
        wrong = (logits.argmax(-1) != self.target).float()
        return torch.zeros(len(self.due_row), device=logits.device).index_add(0, self.question, wrong) == 0

    def loss(self, logits: Tensor) -> Tensor:
        """Return the weighted mean over questions of the cross-entropy of the whole answer."""
        losses = F.cross_entropy(logits, self.target, reduction="none") * self.weights[self.question]
        return losses.sum() / self.weights.sum()


def opening_positions(prefix: int, visual: int, span: int | None) -> Tensor:
    """Return the positions of the prefix and of the visual tokens, spread over `span`, int64 (prefix + visual,)."""
    return torch.cat([torch.arange(prefix), prefix + torch.linspace(0, (span or visual) - 1, visual).round().long()])


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

    def prefix_tensor(self, device: torch.device) -> Tensor:
        """Return the ids of what stands before the image, int64 (1, tokens)."""
        return torch.tensor([self.prefix], device=device)

    def option(self, question: Question) -> slice:
        """Return which tokens of a multiple choice are the right option: its letter and what it says."""
        before, _, after = question.text.partition(f" {question.answer}")
        said = f"{before} {question.answer}{after.partition(' (')[0]}"
        return slice(len(self.ids(before)), len(self.ids(said)))


def word_targets(scenes: EncodedScenes, embedding: Tensor, words: Words, nouns: list[str] = NOUN_NAMES) -> Tensor:
    """Return, for each patch, the mean embedding of the words that name what lies under it.

    Parameters
    ----------
    scenes : EncodedScenes
        The scenes.
    embedding : Tensor
        The language model's embeddings, float32 (vocabulary, hidden).
    words : Words
        The tokenizer's ids.
    nouns : list[str]
        The nouns of objects.

    Returns
    -------
    Tensor
        float32 (scenes, tokens, hidden).
    """
    colors, sizes = list(COLORS), list(SIZES)
    names: dict[tuple[int, ...], Tensor] = {}
    result = []
    for things in scenes.things:
        looks = patch_targets(things, scenes.side, nouns, colors, GLYPHS)[:, :4].astype(int)
        for noun, color, glyph, large in map(tuple, np.unique(looks, axis=0)):
            if (noun, color, glyph, large) not in names:
                look = [colors[color]] if color >= 0 else []
                said = [sizes[large], *look, nouns[noun], *([GLYPHS[glyph]] if glyph >= 0 else [])]
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
