"""Evaluate methods on a data set of questions about images: one row a question.

Encode the images of a split once, or try one method, from the command line:

    idsel encode --split test
    idsel evaluate --split validation --method idselection --budget 64
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from idsel_core.backbones import Backbone, Encoded
from idsel_core.methods import Method, UniformGrid, drops_inside
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.pruning.pipeline import read_tokens, select_tokens, shorten_call
from idsel_core.selection.result import Selection
from idsel_core.study.cost import flops_prefill
from idsel_core.study.dataset import BLIND, FULL, Split, read_split
from idsel_core.study.encodings import encode_split, fingerprint, image_pixels, read_encoding, write_encoding
from idsel_core.study.open_backbone import open_backbone, weights_hash
from idsel_core.study.paths import CACHE, DATA, MODEL
from idsel_core.study.shared_prefix import generate_sharing
from idsel_core.study.store.provenance import installed, sha256
from idsel_core.study.store.resume import ResumableRows
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Study:
    """A model, a split of a data set and its images, encoded once and shared by all methods and budgets.

    Attributes
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor.
    split : Split
        Questions and images.
    encoded : Encoded
        One row an image, in the order of ``split.images``.
    name : str
        What the results call the model.
    positions : {"compact", "keep"}
        As for `prune`.
    """

    backbone: Backbone
    processor: Any
    split: Split
    encoded: Encoded
    name: str = "embedded"
    positions: str = "compact"

    def run(self, methods: Iterable[Method | str], batch: int = 50, resume: Path | None = None) -> pd.DataFrame:
        """Ask all questions with each method, with a progress bar.

        Parameters
        ----------
        methods : iterable of Method or str
            Methods; `FULL` (all tokens) and `BLIND` (no image) are allowed beside them.
        batch : int
            Questions at a time.
        resume : Path, optional
            Folder where rows are kept as they come, such as `Results.resume_folder`: after a kill, the same call
            resumes there. A run of other methods, questions, weights or code starts anew.

        Returns
        -------
        DataFrame
            One row a question and method, ready for `Results.write`.

        Raises
        ------
        TypeError
            If something is no method.
        OSError
            If nothing can be written to the folder.
        """
        methods = _checked(methods)
        questions = self.split.questions
        steps = [(start, method) for start in range(0, len(questions), batch) for method in methods]
        kept = ResumableRows(resume, {} if resume is None else self._key(methods, batch))
        with tqdm(total=len(methods) * len(questions), desc=f"ask {self.split.name}", mininterval=5) as bar:
            bar.update(sum(len(questions.iloc[start : start + batch]) for start, _ in steps[: kept.done]))
            for start, group in itertools.groupby(steps[kept.done :], key=lambda step: step[0]):
                asked = questions.iloc[start : start + batch]
                whole = self._inputs(asked, self._encoded(asked))
                for _, method in group:
                    kept.add(self._ask(method, asked, whole))
                    bar.update(len(asked))
        return kept.rows()

    def _key(self, methods: Sequence[Method | str], batch: int) -> dict[str, Any]:
        """Return what the rows of a run depend on."""
        model, code = self.backbone.model, Path(__file__).parents[1]
        return {
            "methods": [repr(method) for method in methods],
            "batch": batch,
            "backbone": self.name,
            "positions": self.positions,
            "questions": hashlib.sha256(self.split.questions.to_json().encode()).hexdigest(),
            "images": self.split.images_hash,
            "weights": [weights_hash(each) for each in (model, getattr(self.backbone.relevance, "dual_encoder", None))],
            "device": f"{model.device} {model.dtype}",
            "code": {str(path.relative_to(code)): sha256(path) for path in sorted(code.rglob("*.py"))},
            "packages": installed(),
        }

    @torch.no_grad()
    def applicable(self, methods: Iterable[Method]) -> tuple[list[Method], dict[str, str]]:
        """Try methods on the first question, and tell those that can run here from those that cannot.

        Parameters
        ----------
        methods : iterable of Method
            Methods, each with its budget.

        Returns
        -------
        tuple
            The methods that can run, in order; and for each other one why it cannot, under its `title`, with the
            budget where it runs at another one.
        """
        usable: list[Method] = []
        refused: dict[Method, str] = {}
        asked = self.split.questions.head(1)
        whole = self._inputs(asked, self._encoded(asked))
        for method in methods:
            try:
                self._ask(method, asked, whole)
                usable.append(method)
            except ValueError as error:
                refused[method] = str(error)
        running = {title(method) for method in usable}
        reasons = {
            f"{title(method)} at {method.budget:g}" if title(method) in running else title(method): why
            for method, why in refused.items()
        }
        return usable, reasons

    @torch.no_grad()
    def _ask(self, method: Method | str, questions: pd.DataFrame, whole: _Inputs) -> pd.DataFrame:
        if method == BLIND:
            short, passage = self._prompts(questions, [0] * len(questions)), None
            output = self._generate(short, torch.arange(len(questions)))
        else:
            acting = UniformGrid(1.0) if isinstance(method, str) else method
            grid = acting.target_grid(*self.grid)
            inputs = whole if grid == self.grid else self._inputs(questions, self._encoded(questions, grid))
            selection = select_tokens(acting, inputs.tokens)
            call = shorten_call(self.backbone, acting, inputs.tokens, selection, inputs.prompts, self.positions)
            sharing = torch.arange(len(questions)) if drops_inside(acting) else _alike(questions, selection)
            short = call.inputs
            with call.running() as passage:
                output = self._generate(short, sharing)
        answers = self.processor.batch_decode(output, skip_special_tokens=True)
        if passage is None:
            before, kept = 0, None
            layers = [[0] * self.backbone.language_model.config.num_hidden_layers] * len(questions)
        else:
            before, kept = self.grid[0] * self.grid[1], self._places(passage.left, grid)
            layers = passage.layers.tolist()
        predictions = np.array([answer.strip() for answer in answers])
        return pd.DataFrame(
            {
                "backbone": self.name,
                "dataset": self.split.dataset,
                "split": self.split.name,
                **{name: questions[name].to_numpy() for name in ("question_id", "image_id", "question_type")},
                "method": method if isinstance(method, str) else method.name,
                **{knob: getattr(method, knob, None) for knob in ("importance", "normalise", "features", "update")},
                "instruction": _instruction(method),
                "gamma": getattr(method, "gamma", np.nan),
                "positions": self.positions,
                "budget": float(before if isinstance(method, str) else method.budget),
                "convention": method.budget_convention if drops_inside(method) else None,
                "tokens_before": before,
                "tokens_kept": [profile[-1] for profile in layers],
                "tokens_average": [sum(profile) / len(profile) for profile in layers],
                "prefill_gflops": self._gflops(layers, short),
                "on_objects": np.nan if kept is None else self._shares_on_objects(questions["image_id"], kept),
                "seed": getattr(method, "seed", 0),
                "prediction": predictions,
                "answer": questions["answer"].to_numpy(),
                "correct": predictions == questions["answer"].to_numpy(),
                "chance": [1 / len(choices) for choices in questions["choices"]],
            }
        )

    def _generate(self, prompts: dict[str, Any], owner: Tensor) -> Tensor:
        options = {"max_new_tokens": self._answer_tokens, "do_sample": False}
        return generate_sharing(self.backbone.model, prompts, owner, **options)

    def _gflops(self, layers: Sequence[Sequence[int]], prompts: dict[str, Tensor]) -> list[float]:
        """Return the GFLOPs of each prompt's prefill in the language model, NaN where `cost` does not know it."""
        image = prompts["input_ids"] == self.backbone.image_token_id
        words = (prompts["attention_mask"].bool() & ~image).sum(1).tolist()

        @functools.cache
        def of(profile: tuple[int, ...], text: int) -> float:
            try:
                return flops_prefill(self.backbone.model.config, profile, text).language_model / 1e9
            except (TypeError, ValueError):
                return float("nan")

        return [of(tuple(profile), text) for profile, text in zip(layers, words, strict=True)]

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the images' tokens."""
        rows, columns = (self.encoded.grid[0].amax(0) + 1).tolist()
        return rows, columns

    def _encoded(self, questions: pd.DataFrame, grid: tuple[int, int] | None = None) -> Encoded:
        """Return the encodings of the questions' images, a row a question; of resized images anew."""
        names, owner = np.unique(questions["image_id"], return_inverse=True)
        if grid is None:
            return self.encoded.take(torch.from_numpy(self.split.images.index.get_indexer(pd.Index(names))[owner]))
        pixels = image_pixels(self.processor, [self.split.picture(name) for name in names], self.backbone.model.device)
        return self.backbone.encode(pixels, grid=grid).take(torch.from_numpy(owner))

    @torch.no_grad()
    def _inputs(self, questions: pd.DataFrame, encoded: Encoded) -> _Inputs:
        prompts = self._prompts(questions, encoded.placeholders.tolist())
        return _Inputs(prompts, read_tokens(self.backbone, encoded, prompts))

    def _places(self, selection: Selection, grid: tuple[int, int]) -> list[np.ndarray]:
        """Return where in the grid of the whole image the middles of kept tokens lie."""
        rows, columns = self.grid
        return [
            (tokens // grid[1] * 2 + 1) * rows // (2 * grid[0]) * columns
            + (tokens % grid[1] * 2 + 1) * columns // (2 * grid[1])
            for tokens in (kept.numpy() for kept in selection.rows())
        ]

    def _prompts(self, questions: pd.DataFrame, placeholders: Sequence[int]) -> dict[str, Tensor]:
        image = self.processor.image_token
        texts = []
        for question, count in zip(questions["question"], placeholders, strict=True):
            content = [{"type": "image"}] * bool(count) + [{"type": "text", "text": question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            texts.append(text.replace(image, image * count))
        inputs = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
        device = self.backbone.model.device
        return {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}

    @functools.cached_property
    def _answer_tokens(self) -> int:
        answers = self.split.questions["answer"].unique().tolist()
        return max(map(len, self.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]))

    def on_objects(self, image_id: str) -> np.ndarray:
        """Return which tokens' middles lie in an object's box, bool (N,), for an image in raster order."""
        rows, columns = self.grid
        width, height = self.split.picture(image_id).size
        x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows)[:, None] + 0.5) * height / rows
        inside = np.zeros((rows, columns), bool)
        for box in cast(list[dict[str, int]], self.split.images.at[image_id, "objects"]):
            inside |= (x >= box["left"]) & (x < box["right"]) & (y >= box["top"]) & (y < box["bottom"])
        return inside.reshape(-1)

    @functools.cached_property
    def _objects(self) -> dict[str, np.ndarray]:
        return {name: self.on_objects(name) for name in self.split.images.index}

    def _shares_on_objects(self, image_ids: Iterable[str], kept: Iterable[np.ndarray]) -> list[float]:
        # Where all tokens that are left were merged, none has a place.
        return [
            float(self._objects[name][tokens].mean()) if len(tokens) else float("nan")
            for name, tokens in zip(image_ids, kept, strict=True)
        ]


@dataclass(frozen=True)
class _Inputs:
    """Full prompts and their visual tokens; the views that methods read are computed once for all of them."""

    prompts: dict[str, Tensor]
    tokens: VisualTokens


def _checked(methods: Iterable[Method | str]) -> list[Method | str]:
    """Return the methods of a run as a list; refuse names of methods and classes, which would mean another thing."""
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise TypeError(f"give a list of methods, for example [IDSelection(budget=64)], not {methods!r}")
    asked = list(methods)
    for method in asked:
        if not isinstance(method, Method) and method not in (FULL, BLIND):
            raise TypeError(
                f"{method!r} is no method: give one such as get_method('idselection', budget=64), or {FULL!r} for all "
                f"tokens, or {BLIND!r} for no image"
            )
    return asked


def title(method: Method) -> str:
    """Return the name of a method, and what its budget means where that is the tokens left at last."""
    final = drops_inside(method) and method.budget_convention == "final"
    return f"{method.name} (final)" if final else method.name


def _alike(questions: pd.DataFrame, selection: Selection) -> Tensor:
    """Give rows of the same image and the same kept tokens the same number, int64 (B,)."""
    if selection.features is not None:
        return torch.arange(len(selection))
    images = torch.from_numpy(pd.factorize(questions["image_id"])[0]).to(selection.indices)
    rows = torch.cat([images[:, None], selection.indices], 1).cpu().numpy()
    return torch.from_numpy(np.unique(rows, axis=0, return_inverse=True)[1])


def _instruction(method: Method | str) -> str | None:
    return f"{method.instruction_tokens}@{method.instruction_layer}" if isinstance(method, Scored) else None


def open_study(
    split: str,
    *,
    limit: int = 0,
    model: Path | str = MODEL,
    data: Path | str = DATA,
    cache: Path | str = CACHE,
    device: str = "cpu",
    tower_depths: Sequence[float] | None = None,
) -> Study:
    """Load the model and a split, and its encoding; encode and store it first where that is not done yet.

    Parameters
    ----------
    split, limit, data
        As for `read_split`.
    model, device
        As for `open_backbone`.
    cache : Path or str
        Folder of stored encodings.
    tower_depths : sequence of float, optional
        As for `encode_split`; such encodings are large and are not stored.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_split` and `open_backbone`.
    """
    model, whole = Path(model), read_split(split, Path(data))
    chosen = read_split(split, Path(data), limit)
    backbone, processor = open_backbone(model, device)
    if tower_depths is not None:
        return Study(backbone, processor, chosen, encode_split(backbone, processor, chosen, tower_depths=tower_depths))
    made_from, path = fingerprint(whole, model), Path(cache) / f"{split}.safetensors"
    encoded = read_encoding(path, made_from)
    if encoded is not None:
        rows = whole.images.index.get_indexer(chosen.images.index)
        encoded = encoded if limit == 0 else encoded.take(torch.from_numpy(rows))
    else:
        encoded = encode_split(backbone, processor, chosen)
        if limit == 0:
            write_encoding(encoded, path, made_from)
    return Study(backbone, processor, chosen, encoded)


def accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each method and budget, in all and by question type, with the chance level."""
    by = ["method", "budget"]
    chance = rows.drop_duplicates("question_id").assign(method="chance", budget=0.0, correct=lambda r: r["chance"])
    rows = pd.concat([rows.assign(correct=rows["correct"].astype(float)), chance], ignore_index=True)
    wide = rows.pivot_table(index=by, columns="question_type", values="correct", sort=False)
    wide.insert(0, "all", rows.groupby(by, sort=False)["correct"].mean())
    return wide
