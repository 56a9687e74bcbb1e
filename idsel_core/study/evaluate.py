"""Evaluate methods on a data set of questions about images: one row a question.

Encode the images of a split once, or try one method, from the command line:

    idsel encode --split test
    idsel evaluate --split validation --method idselection --budget 64
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from idsel_core.pruning.pipeline import read_tokens, shorten_call
from idsel_core.selection.result import Selection
from idsel_core.study.common_batches import CommonBatches, ShortPrompt, out_of_memory, split_prompts
from idsel_core.study.cost import flops_prefill
from idsel_core.study.dataset import BLIND, FULL, Split, read_split
from idsel_core.study.encodings import encode_split, fingerprint, image_pixels, read_encoding, write_encoding
from idsel_core.study.nested_budgets import NestedSelections
from idsel_core.study.open_backbone import open_backbone, weights_hash
from idsel_core.study.paths import CACHE, DATA, MODEL
from idsel_core.study.store.provenance import installed, sha256
from idsel_core.study.store.resume import ResumableRows
from idsel_core.visual_tokens import VisualTokens

_WAITING = 4
"""Batches whose prompts are shortened before they are sorted by length and answered."""


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
        kept = ResumableRows(resume, {} if resume is None else self._key(methods, batch))
        asking = CommonBatches(self.backbone, batch * self._full_columns, self._options)
        with tqdm(total=len(methods) * len(questions), desc=f"ask {self.split.name}", mininterval=5) as bar:
            for number, start in enumerate(range(0, len(questions), batch)):
                asked = questions.iloc[start : start + batch]
                done = min(max(kept.done - number * len(methods), 0), len(methods))
                bar.update(done * len(asked))
                for rows in self._ask(methods, asked, asking, done):
                    kept.add(rows)
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
        whole = self._inputs(asked)
        asking = CommonBatches(self.backbone, self._full_columns, self._options)
        for method in methods:
            try:
                list(self._ask([method], asked, asking, whole=whole))
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
    def _ask(
        self,
        methods: Sequence[Method | str],
        questions: pd.DataFrame,
        asking: CommonBatches,
        done: int = 0,
        whole: _Inputs | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Yield the rows of some questions for each method behind the first `done`, in order.

        Where memory runs out, the questions are asked in two halves.
        """
        if done == len(methods):
            return
        try:
            for rows in self._ask_together(methods, questions, asking, done, whole or self._inputs(questions)):
                yield rows
                done += 1
            return
        except RuntimeError as error:
            if len(questions) == 1 or not out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        half = len(questions) // 2
        parts = (self._ask(methods, part, asking, done) for part in (questions.iloc[:half], questions.iloc[half:]))
        for both in zip(*parts, strict=True):
            yield pd.concat(both, ignore_index=True)

    def _ask_together(
        self,
        methods: Sequence[Method | str],
        questions: pd.DataFrame,
        asking: CommonBatches,
        done: int,
        whole: _Inputs,
    ) -> Iterator[pd.DataFrame]:
        """As `_ask`: the prompts of as many methods as `_WAITING` batches hold are answered together."""
        select = NestedSelections(methods)
        waiting: list[_Asked] = []
        for place, method in enumerate(methods[done:], done + 1):
            waiting.append(self._shorten(method, questions, whole, select))
            columns = sum(len(prompt) for asked in waiting for prompt in asked.prompts)
            if columns >= _WAITING * asking.columns or place == len(methods):
                answers = self._answers(waiting, asking)
                for asked in waiting:
                    yield self._rows(asked, questions, answers)
                waiting = []

    def _shorten(
        self, method: Method | str, questions: pd.DataFrame, whole: _Inputs, select: NestedSelections
    ) -> _Asked:
        """Return the shortened prompts of a method; those of one that drops tokens inside are answered at once."""
        if method == BLIND:
            prompts = self._prompts(questions, [0] * len(questions))
            keys = [(BLIND, row) for row in range(len(questions))]
            layers = np.zeros((len(questions), self.backbone.decoder_layers), int)
            rows = torch.arange(0)
            return _Asked(
                method, keys, split_prompts(self.backbone, prompts, rows, keys), layers, _words(prompts, self)
            )
        acting = UniformGrid(1.0) if isinstance(method, str) else method
        grid = acting.target_grid(*self.grid)
        inputs = whole if grid == self.grid else self._inputs(questions, grid)
        inside = drops_inside(acting)
        selection = select(acting, inputs.tokens, grid)
        call = shorten_call(self.backbone, acting, inputs.tokens, selection, inputs.prompts, self.positions)
        words = _words(call.inputs, self)
        if inside:
            with call.running() as passage:
                output = self.backbone.model.generate(**call.inputs, **self._options)
            new = output[:, call.inputs["input_ids"].shape[1] :]
            return _Asked(
                method, [], [], passage.layers.cpu().numpy(), words, self._places(passage.left, grid), list(new)
            )
        picks = _picks(selection)
        images = questions["image_id"].tolist()
        keys = [(row, grid, pick) for row, pick in enumerate(picks)]
        begins_like = [(image, grid, pick) for image, pick in zip(images, picks, strict=True)]
        short = split_prompts(self.backbone, call.inputs, torch.arange(len(questions)), begins_like)
        layers = selection.counts.cpu().numpy()[:, None].repeat(self.backbone.decoder_layers, 1)
        return _Asked(method, keys, short, layers, words, self._places(selection, grid))

    def _answers(self, waiting: Sequence[_Asked], asking: CommonBatches) -> dict[Hashable, Tensor]:
        """Return the answer of each prompt by its key; prompts of one key are answered once."""
        prompts = {key: prompt for asked in waiting for key, prompt in zip(asked.keys, asked.prompts, strict=True)}
        return dict(zip(prompts, asking.answer(list(prompts.values())), strict=True))

    def _rows(self, asked: _Asked, questions: pd.DataFrame, answers: Mapping[Hashable, Tensor]) -> pd.DataFrame:
        method, layers = asked.method, asked.layers
        output = [answers[key] for key in asked.keys] if asked.answers is None else asked.answers
        texts = self.processor.batch_decode([new.tolist() for new in output], skip_special_tokens=True)
        predictions = np.array([text.strip() for text in texts])
        before = 0 if method == BLIND else self.grid[0] * self.grid[1]
        return pd.DataFrame(
            {
                "backbone": self.name,
                "dataset": self.split.dataset,
                "split": self.split.name,
                **{name: questions[name].to_numpy() for name in ("question_id", "image_id", "question_type")},
                "method": method if isinstance(method, str) else method.name,
                **{knob: getattr(method, knob, None) for knob in ("importance", "normalise", "features")},
                "update": _update(method),
                "instruction": _instruction(method),
                "gamma": _gamma(method),
                "positions": self.positions,
                "budget": float(before if isinstance(method, str) else method.budget),
                "convention": method.budget_convention if drops_inside(method) else None,
                "tokens_before": before,
                "tokens_kept": layers[:, -1],
                "tokens_average": layers.mean(1),
                "prefill_gflops": [
                    self._gflops(tuple(profile), text)
                    for profile, text in zip(layers.tolist(), asked.words, strict=True)
                ],
                "on_objects": np.nan
                if asked.places is None
                else self._shares_on_objects(questions["image_id"], asked.places),
                "seed": getattr(method, "seed", 0),
                "prediction": predictions,
                "answer": questions["answer"].to_numpy(),
                "correct": predictions == questions["answer"].to_numpy(),
                "chance": [1 / len(choices) for choices in questions["choices"]],
            }
        )

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        return {"max_new_tokens": self._answer_tokens, "do_sample": False}

    @functools.cached_property
    def _full_columns(self) -> int:
        """The columns of the longest full prompt."""
        counts = self.encoded.placeholders.amax().item()
        return max(
            len(ids)
            for ids in self._prompts(self.split.questions, [int(counts)] * len(self.split.questions))["input_ids"]
        )

    @functools.cached_property
    def _gflops(self) -> Callable[[tuple[int, ...], int], float]:
        """The function from the tokens that each layer reads, and the other columns, to a prefill's GFLOPs."""
        config = self.backbone.model.config

        @functools.cache
        def of(profile: tuple[int, ...], words: int) -> float:
            """Return the GFLOPs in the language model, NaN where `cost` does not know it."""
            try:
                return flops_prefill(config, profile, words).language_model / 1e9
            except (TypeError, ValueError):
                return float("nan")

        return of

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the images' tokens."""
        rows, columns = (self.encoded.grid[0].amax(0) + 1).tolist()
        return rows, columns

    def _encoded(self, questions: pd.DataFrame, grid: tuple[int, int] | None = None) -> Encoded:
        """Return the encodings of the questions' images, a row a question; of resized images anew."""
        names, owner = np.unique(questions["image_id"], return_inverse=True)
        if grid is None:
            rows = self.split.images.index.get_indexer(pd.Index(names))
            encoded = self.encoded.take(torch.from_numpy(rows))
            encoded = replace(encoded, features=self.backbone.project(encoded.encoder_features))
            return encoded.take(torch.from_numpy(owner))
        pixels = image_pixels(self.processor, [self.split.picture(name) for name in names], self.backbone.model.device)
        return self.backbone.encode(pixels, grid=grid).take(torch.from_numpy(owner))

    @torch.no_grad()
    def _inputs(self, questions: pd.DataFrame, grid: tuple[int, int] | None = None) -> _Inputs:
        """Return full prompts and their visual tokens; of images resized to a grid, if one is given."""
        encoded = self._encoded(questions, grid)
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


@dataclass(frozen=True, eq=False)
class _Asked:
    """The shortened prompts of one method and some questions, and what the rows say of them.

    Attributes
    ----------
    method : Method or str
        Of the rows.
    keys : sequence of Hashable
        What the answer to each prompt depends on, beside the model.
    prompts : sequence of ShortPrompt
        To be answered.
    layers : ndarray
        Visual tokens that each layer reads, int (B, layers).
    words : list[int]
        Columns of each prompt that hold no visual token.
    places : list[ndarray], optional
        Where in the grid of the image the kept tokens lie, None without an image.
    answers : list[Tensor], optional
        New tokens of each prompt, where it was answered already.
    """

    method: Method | str
    keys: Sequence[Hashable]
    prompts: Sequence[ShortPrompt]
    layers: np.ndarray
    words: list[int]
    places: list[np.ndarray] | None = None
    answers: list[Tensor] | None = None


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


def _words(prompts: Mapping[str, Tensor], study: Study) -> list[int]:
    """Return the number of columns of each prompt that hold neither padding nor a visual token."""
    return (prompts["attention_mask"].bool() & ~study.backbone.placeholders(prompts["input_ids"])).sum(1).tolist()


def _picks(selection: Selection) -> Sequence[Hashable]:
    """Return what tells the kept tokens of each row apart: their indices, and their features where they are new."""
    indices = [row.cpu().numpy().tobytes() for row in selection.rows()]
    if selection.features is None:
        return indices
    kept = (row[:count] for row, count in zip(selection.features, selection.counts.tolist(), strict=True))
    features = [row.cpu().contiguous().view(torch.uint8).numpy().tobytes() for row in kept]
    return list(zip(indices, features, strict=True))


def _update(method: Method | str) -> str | None:
    """Return the update rule of a method, with the exhaustion rule where it is not the default."""
    update, exhausted = getattr(method, "update", None), getattr(method, "exhausted", "restart")
    return update if update is None or exhausted == "restart" else f"{update}, {exhausted}"


def _gamma(method: Method | str) -> float:
    """Return the gamma of a method as a number: -1 for "auto", NaN for a method without one."""
    gamma = getattr(method, "gamma", np.nan)
    return -1.0 if gamma == "auto" else float(gamma)


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
