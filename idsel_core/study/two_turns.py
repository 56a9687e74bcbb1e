"""Ask second questions in conversations: with the tokens picked for the first question, picked anew, and all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from idsel_core.backbones import Encoded
from idsel_core.methods import Method, UniformGrid, drops_inside
from idsel_core.pruning.pipeline import read_tokens, select_tokens, shorten_call
from idsel_core.selection.result import Selection
from idsel_core.study.dataset import FULL
from idsel_core.study.evaluate import Study
from idsel_core.study.full_prompts import short_hash
from idsel_core.study.knobs import knob_columns
from idsel_core.study.metrics import chance, score_each
from idsel_core.visual_tokens import VisualTokens

KEPT, ANEW = "kept", "anew"
"""Whose tokens answer a second question: those that were picked for the first one, or its own."""
ALONE = " alone"
"""Behind these where the prompt leaves out the earlier turn."""


def pair_questions(questions: pd.DataFrame) -> pd.DataFrame:
    """Return each question beside the one before it about the same image, the first beside the last.

    Parameters
    ----------
    questions : DataFrame
        As of a split.

    Returns
    -------
    DataFrame
        The columns of `questions`, and ``first``, what is asked before. Questions that are alone are left out.

    Raises
    ------
    ValueError
        If no image has two questions.
    """
    of_image = questions.groupby("image_id", sort=False)["question"]
    last = of_image.transform("last").where(of_image.transform("size") > 1)
    pairs = questions.assign(first=of_image.shift().fillna(last)).dropna(subset="first").reset_index(drop=True)
    if pairs.empty:
        raise ValueError("no image has two questions, so there is no second turn")
    return pairs


@torch.no_grad()
def ask_second_questions(
    study: Study, methods: Iterable[Method | str], pairs: pd.DataFrame, batch: int = 50
) -> pd.DataFrame:
    """Answer second questions; the first one is answered by the same method before.

    The tokens that answer with what was kept are those that a cache holds which goes on from the first question.

    Parameters
    ----------
    study : Study
        The model and its encoded images.
    methods : iterable of Method or str
        Methods that choose before the language model; "full", all tokens, is allowed beside them.
    pairs : DataFrame
        As `pair_questions` returns them.
    batch : int
        Pairs at a time.

    Returns
    -------
    DataFrame
        One row a pair, method and way to answer, ready for `Results.write`.

    Raises
    ------
    ValueError
        If a method drops tokens inside the language model, or acts on pixels, or a name is no method, or the images
        were not encoded before.
    """
    if study.encoded is None:
        raise ValueError("two turns need images that were encoded before: the embedded data and a LLaVA-like folder")
    methods = list(methods)
    for method in methods:
        if not isinstance(method, Method) and method != FULL:
            raise ValueError(f"{method!r} is no method: give one such as get_method('topk', budget=64), or {FULL!r}")
        if isinstance(method, Method) and (drops_inside(method) or method.acts_on_pixels):
            raise ValueError(f"{method.name} does not choose before the language model from the tokens of whole images")
    rows = []
    with tqdm(
        total=len(methods) * len(pairs), desc=f"ask {study.split.name} twice", unit="answer", mininterval=2
    ) as bar:
        for start in range(0, len(pairs), batch):
            asked = pairs.iloc[start : start + batch]
            images = study.split.images.index.get_indexer(pd.Index(asked["image_id"]))
            encoded = study.encoded.take(torch.from_numpy(images))
            for method in methods:
                rows += _answers(study, method, asked, encoded)
                bar.update(len(asked))
    return pd.concat(rows, ignore_index=True)


def _answers(study: Study, method: Method | str, pairs: pd.DataFrame, encoded: Encoded) -> list[pd.DataFrame]:
    acting = UniformGrid(1.0) if isinstance(method, str) else method
    first = _asked(study, encoded, [[question] for question in pairs["first"]])
    picked = select_tokens(acting, first.tokens)
    said = _generate(study, acting, first, picked)
    turns = [list(turn) for turn in zip(pairs["first"], said, pairs["question"], strict=True)]
    alone = [[question] for question in pairs["question"]]
    rows = []
    for conversations, left_out in ((turns, ""), (alone, ALONE)):
        second = _asked(study, encoded, conversations)
        for whose, selection in ((KEPT, picked), (ANEW, select_tokens(acting, second.tokens))):
            if whose == ANEW or isinstance(method, Method):  # all tokens are the same tokens
                answers = _generate(study, acting, second, selection)
                rows.append(_rows(study, method, pairs, whose + left_out, selection, answers))
    return rows


@dataclass(frozen=True)
class _Asked:
    """Full prompts of conversations, and their visual tokens."""

    prompts: dict[str, Tensor]
    tokens: VisualTokens


def _asked(study: Study, encoded: Encoded, conversations: Sequence[Sequence[str]]) -> _Asked:
    """Return padded prompts of conversations, in which user and assistant take turns and an image comes first."""
    image, texts = study.processor.image_token, []
    for turns, count in zip(conversations, encoded.placeholders.tolist(), strict=True):
        chat: list[dict[str, Any]] = []
        for number, text in enumerate(turns):
            content = [{"type": "image"}] * (number == 0) + [{"type": "text", "text": text}]
            chat.append({"role": "assistant" if number % 2 else "user", "content": content})
        text = study.processor.apply_chat_template(chat, add_generation_prompt=True)
        texts.append(text.replace(image, image * count))
    inputs = study.processor.tokenizer(texts, padding=True, return_tensors="pt")
    prompts = {name: inputs[name].to(study.backbone.model.device) for name in ("input_ids", "attention_mask")}
    return _Asked(prompts, read_tokens(study.backbone, encoded, prompts))


def _generate(study: Study, method: Method, asked: _Asked, selection: Selection) -> list[str]:
    call = shorten_call(study.backbone, method, asked.tokens, selection, asked.prompts, study.positions)
    answers = study.split.questions["answer"].unique().tolist()
    longest = max(map(len, study.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]))
    width = call.inputs["input_ids"].shape[1]
    with call.running():
        output = study.backbone.model.generate(**call.inputs, max_new_tokens=longest, do_sample=False)
    said = study.processor.batch_decode(output[:, width:], skip_special_tokens=True)
    return [answer.strip() for answer in said]


def _rows(
    study: Study,
    method: Method | str,
    pairs: pd.DataFrame,
    conversation: str,
    selection: Selection,
    predictions: Sequence[str],
) -> pd.DataFrame:
    assert study.encoded is not None
    before = int(study.encoded.mask[0].sum())
    kept = selection.counts.cpu().numpy()
    objects = {name: study.on_objects(name) for name in pairs["image_id"].unique()}
    return pd.DataFrame(
        {
            "backbone": study.name,
            "revision": study.revision or None,
            "dtype": str(study.backbone.model.dtype).removeprefix("torch.") + study.settings,
            "template": study.writer.template_hash,
            "dataset": study.split.dataset,
            "split": study.split.name,
            **{name: pairs[name].to_numpy() for name in ("question_id", "image_id", "question_type")},
            "method": method if isinstance(method, str) else method.name,
            **knob_columns(method),
            "positions": study.backbone.positions_of(study.positions),
            "budget": float(before if isinstance(method, str) else method.budget),
            "conversation": conversation,
            "tokens_before": before,
            "tokens_kept": kept,
            "tokens_average": kept.astype(float),
            "prefill_gflops": np.nan,
            "scoring_gflops": np.nan,
            "on_objects": [
                float(objects[name][picks.cpu().numpy()].mean())
                for name, picks in zip(pairs["image_id"], selection.rows(), strict=True)
            ],
            "prompt": [short_hash(text) for text in pairs["question"]],
            "metric": pairs["metric"].to_numpy(),
            "prediction": predictions,
            "answer": pairs["answer"].to_numpy(),
            "correct": score_each(predictions, pairs),
            "chance": chance(pairs),
        }
    )
