"""What is trained of the embedded backbone, and how several questions an image become one sequence for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from data.backbone.hints import COUNT_WEIGHTS, HEADS
from data.backbone.language import PREFIX, SUFFIX, build_config, build_tokenizer
from data.scenes.ask import RELATIONS, Question
from idsel_core.backbones._shared.qk_capture import capture_qk


@contextmanager
def outputs_of(*layers: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what layers give, in the order in which they run."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Student(nn.Module):
    """The parts of the backbone that are trained, with heads that exist only while training.

    `patch_heads` tell what lies under each patch from the language model's second layer, which teaches the first
    layers to read the frozen features, and `middle_head` whether it is the middle of its object. `asked_heads` tell
    what the question is about (in a relation, both objects and the relation's word) from the last layer but one, which
    teaches the layers between to find it. So does the gaze: what the first two attention heads of the third layer
    attend to, where the answer is due. The third head counts: it gives each counted object an equal vote and leaves the
    rest to the text. The pointer is what the last layer's first head attends to there, among the words of the question:
    the right option of a multiple choice.
    """

    def __init__(self) -> None:
        super().__init__()
        config = build_config()
        with torch.device("meta"):
            llava = LlavaForConditionalGeneration(config)
        llava.model.vision_tower = None
        llava.to_empty(device="cpu")
        llava.init_weights()
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        self.lm_head = llava.lm_head
        hidden, width = config.text_config.hidden_size, config.vision_config.hidden_size
        self.patch_heads = nn.Linear(hidden, sum(HEADS.values()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.middle_head = nn.Linear(hidden, 1)
        self.asked_heads = nn.Linear(hidden, 2 * sum(HEADS.values()) + len(RELATIONS))
        heads = (self.patch_heads, self.middle_head, self.asked_heads)
        for linear in (self.projector.linear_1, self.projector.linear_2, *heads):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Tensor, packed: Packed) -> Outputs:
        visual = self.projector((features.float() - self.mean) / self.std)
        embed = self.language_model.get_input_embeddings()
        prefix = embed(packed.prefix).expand(len(features), -1, -1)
        layers = self.language_model.layers
        captured = capture_qk(layers[2].self_attn), capture_qk(layers[-1].self_attn)
        with outputs_of(layers[1], layers[-2]) as seen, captured[0] as third, captured[1] as last:
            hidden = self.language_model(
                inputs_embeds=torch.cat([prefix, visual, embed(packed.ids)], 1),
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            ).last_hidden_state
        start = prefix.shape[1]
        under = seen[0][:, start : start + visual.shape[1]]
        found = seen[1][packed.answer_row, packed.answer_column].float()
        pairs = 2 * sum(HEADS.values())
        asked, relation = self.asked_heads(F.rms_norm(found, found.shape[-1:])).split([pairs, len(RELATIONS)], -1)
        query, key, scale = third.tensors()
        asking = query[packed.answer_row, :3, packed.answer_column].float()
        attending = (key[:, :3].float()[packed.answer_row] @ asking[..., None])[..., 0] * scale
        gaze = attending[:, :2, start : start + visual.shape[1]]
        counting = packed.counting
        hidden_keys = ~packed.mask[packed.answer_row, 0, packed.answer_column][counting]
        votes = attending[counting, 2].masked_fill(hidden_keys, -torch.inf).log_softmax(-1)
        query, key, scale = last.tensors()
        row, column = packed.answer_row[packed.choosing], packed.answer_column[packed.choosing]
        pointer = torch.einsum("qld,qd->ql", key[row, 0].float(), query[row, 0, column].float()) * scale
        readable = packed.mask[row, 0, column].clone()
        readable[:, : start + visual.shape[1]] = False
        pointer = pointer.masked_fill(~readable, -torch.inf)
        logits = self.lm_head(hidden[packed.answer_row, packed.answer_column])
        return Outputs(
            logits=logits,
            patches=self.patch_heads(under),
            middle=self.middle_head(under)[..., 0],
            asked=asked.unflatten(1, (2, -1)),
            relation=relation,
            gaze=gaze,
            votes=votes,
            pointer=pointer,
        )

    def adopt(self, deployed: dict[str, Tensor]) -> None:
        """Go on from weights that `deployed` gave; the training heads begin anew."""
        for ours, theirs in (
            (self.projector, "model.multi_modal_projector."),
            (self.language_model, "model.language_model."),
            (self.lm_head, "lm_head."),
        ):
            ours.load_state_dict({k.removeprefix(theirs): v for k, v in deployed.items() if k.startswith(theirs)})
        first = self.projector.linear_1
        with torch.no_grad():
            first.bias += first.weight @ self.mean
            first.weight *= self.std

    def deployed(self) -> dict[str, Tensor]:
        """Return the trained weights under LLaVA's own names, the standardisation folded into the projector."""
        state = {f"model.multi_modal_projector.{k}": v for k, v in self.projector.state_dict().items()}
        weight = self.projector.linear_1.weight / self.std
        state["model.multi_modal_projector.linear_1.weight"] = weight
        state["model.multi_modal_projector.linear_1.bias"] = self.projector.linear_1.bias - weight @ self.mean
        state |= {f"model.language_model.{k}": v for k, v in self.language_model.state_dict().items()}
        state["lm_head.weight"] = self.lm_head.weight
        return {k: v.detach().cpu().contiguous() for k, v in state.items()}


@dataclass(frozen=True)
class Outputs:
    """What the student says: for each question, for each patch (`patches`, `middle`) and for some questions alone.

    `logits` (questions, words); `asked` (questions, 2, heads) and `relation` (questions, 4) name what is asked; `gaze`
    (questions, 2, tokens) holds attention logits; `votes` (counting questions, length) log attention; `pointer`
    (choices, length) attention logits.
    """

    logits: Tensor
    patches: Tensor
    middle: Tensor
    asked: Tensor
    relation: Tensor
    gaze: Tensor
    votes: Tensor
    pointer: Tensor


class Packed:
    """Several questions an image in one sequence: prefix, visual tokens, then each question with its own positions.

    The visual tokens' positions are spread over `span`, which is their number by default: after pruning, the same
    question stands at other positions, and it should read the same there.
    """

    def __init__(
        self,
        questions: list[list[Question]],
        visual: int,
        words: Words,
        device: torch.device,
        span: int | None = None,
    ) -> None:
        rows = [[words.question(q) for q in qs] for qs in questions]
        length = max(sum(map(len, row)) for row in rows)
        start = len(words.prefix) + visual
        after = len(words.prefix) + (span or visual)
        ids = np.full((len(rows), length), words.pad)
        segment = np.full((len(rows), length), -1)
        positions = np.zeros((len(rows), length), np.int64)
        answers, options, counting, relating, weights = [], [], [], [], []
        for b, row in enumerate(rows):
            at = 0
            for k, tokens in enumerate(row):
                end = at + len(tokens)
                ids[b, at:end], segment[b, at:end] = tokens, k + 1
                positions[b, at:end] = np.arange(after, after + len(tokens))
                question = questions[b][k]
                answers.append((b, start + end - 1, words.ids[question.answer]))
                weights.append(COUNT_WEIGHTS[question.answer] if question.question_type == "counting" else 1.0)
                if question.question_type == "choice":
                    letter = tokens.index(words.ids[question.answer])
                    options.append((len(answers) - 1, start + at + letter + 1))
                elif question.question_type == "counting":
                    counting.append(len(answers) - 1)
                elif question.question_type == "relation":
                    word = next(i for i, name in enumerate(RELATIONS) if f" {name} " in question.text)
                    relating.append((len(answers) - 1, word))
                at = end
        segments = torch.from_numpy(np.pad(segment, ((0, 0), (start, 0)))).to(device)
        total = start + length
        causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        shared = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        self.mask = (shared & causal)[:, None]
        self.ids = torch.from_numpy(ids).to(device)
        self.prefix = torch.tensor([words.prefix], device=device)
        seen = np.linspace(0, (span or visual) - 1, visual).round().astype(int) + len(words.prefix)
        opening = torch.from_numpy(np.concatenate([np.arange(len(words.prefix)), seen])).expand(len(rows), -1)
        self.positions = torch.cat([opening, torch.from_numpy(positions)], 1).to(device)
        row, column, target = (torch.tensor(v, device=device) for v in zip(*answers, strict=True))
        self.answer_row, self.answer_column, self.target = row, column, target
        self.choosing, self.option = torch.tensor(options, device=device).reshape(-1, 2).long().T
        self.relating, self.relation = torch.tensor(relating, device=device).reshape(-1, 2).long().T
        self.counting = torch.tensor(counting, device=device).long()
        self.weights = torch.tensor(weights, device=device)
        self.visual = slice(len(words.prefix), start)


class Words:
    """The token ids that packing needs."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        self.ids = tokenizer.get_vocab()
        self.pad = tokenizer.pad_token_id
        self.prefix = tokenizer(PREFIX.removesuffix("<image>").strip()).input_ids
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._known: dict[str, list[int]] = {}

    def question(self, question: Question) -> list[int]:
        """Return the ids of a question and of the suffix, after which the answer is due."""
        if question.text not in self._known:
            self._known[question.text] = self._encode(f"{question.text} {SUFFIX}")
        return self._known[question.text]
