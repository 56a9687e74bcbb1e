"""Evaluate methods on a data set of questions about images: one row a question.

Encode the images of a split once, or try one method, from the command line:

    idsel encode --split test
    idsel evaluate --split validation --method idselection --budget 64
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from idsel_core.backbones import Backbone, Encoded
from idsel_core.methods import Method, UniformGrid, drops_inside
from idsel_core.pruning.pipeline import shorten_call
from idsel_core.selection.result import Selection
from idsel_core.study.asked_methods import checked_methods, title, tower_depths
from idsel_core.study.asked_prompts import AskedPrompts, picks_of
from idsel_core.study.backbone_folders import job_name
from idsel_core.study.common_batches import CommonBatches, out_of_memory, split_prompts
from idsel_core.study.cost.gflops import Gflops
from idsel_core.study.dataset import BLIND, FULL, Split
from idsel_core.study.full_prompts import PromptWriter, short_hash
from idsel_core.study.knobs import knob_columns
from idsel_core.study.metrics import chance, score_each
from idsel_core.study.nested_budgets import NestedSelections
from idsel_core.study.objects import Objects, shares_on_objects
from idsel_core.study.open_backbone import weights_hash
from idsel_core.study.paths import DATA
from idsel_core.study.question_inputs import QuestionInputs, QuestionReader
from idsel_core.study.refusals import is_refusal
from idsel_core.study.store.provenance import installed, sha256
from idsel_core.study.store.resume import ResumableRows

_WAITING = 4
"""Batches whose prompts are shortened before they are sorted by length and answered."""


@dataclass(frozen=True)
class Study:
    """A model and a split of a data set; each image is encoded once for all methods and budgets.

    Attributes
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor.
    split : Split
        Questions and images.
    encoded : Encoded, optional
        One row an image, in the order of ``split.images``, of a model with a fixed grid. Without it, images are encoded
        as their questions are asked.
    name : str
        What the results call the model.
    positions : {"compact", "keep"}, optional
        As for `prune`.
    revision : str
        Which version of the model: a commit of the hub, or "".
    settings : str
        What else the model was loaded with, such as its quantisation.
    new_tokens : int, optional
        Most tokens of an answer; as many as the data set says by default.
    weights : tuple[Path, ...]
        Files of the model's weights.
    """

    backbone: Backbone
    processor: Any
    split: Split
    encoded: Encoded | None = None
    name: str = "embedded"
    positions: str | None = None
    revision: str = ""
    settings: str = ""
    new_tokens: int | None = None
    weights: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files that the rows depend on: those of the data set, and the weights where they are files here."""
        return [*self.split.files, *self.weights]

    def named(self, name: str) -> str:
        """Return the name of a job or a figure: as it is of the embedded model and data, else with theirs behind it.

        The settings that a model was loaded with are part of its name, as its rows are others then.
        """
        model = self.name + self.settings
        if (model, self.split.dataset) == ("embedded", DATA.name):
            return name
        return job_name(name, model, self.split.dataset, self.split.name)

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
        methods = checked_methods(methods)
        questions = self.split.questions
        kept = ResumableRows(resume, {} if resume is None else self._key(methods, batch))
        asking = CommonBatches(self.backbone, batch, self._options)
        with tqdm(
            total=len(methods) * len(questions), desc=f"ask {self.split.name}", unit="answer", mininterval=2
        ) as bar:
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
            "backbone": [self.name, self.revision, self.settings, self.writer.template_hash],
            "positions": self.positions,
            "options": self._options,
            "questions": hashlib.sha256(self.split.questions.to_json().encode()).hexdigest(),
            "images": self.split.images_hash,
            "weights": [
                # A commit of the hub names its weights, and to hash those of a large model takes minutes.
                self.revision or weights_hash(model),
                weights_hash(getattr(self.backbone.relevance, "dual_encoder", None)),
            ],
            "device": f"{model.device} {model.dtype}",
            "code": {str(path.relative_to(code)): sha256(path) for path in sorted(code.rglob("*.py"))},
            "packages": installed(),
        }

    @torch.no_grad()
    def applicable(self, methods: Iterable[Method]) -> tuple[list[Method], dict[str, str]]:
        """Try methods on the first question, and tell those that can run here from those that cannot.

        The question with the largest picture, or the longest clip, is tried too, where that is known: the least budget
        of a method that drops tokens inside the language model grows with their number.

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
        asking = CommonBatches(self.backbone, 1, self._options)
        methods = list(methods)
        depths = tower_depths(methods)
        tried = [(asked, self._reader.read(asked, depths)) for asked in self._telling()]
        for method in methods:
            try:
                for asked, whole in tried:
                    list(self._ask([method], asked, asking, whole=whole))
                usable.append(method)
            except ValueError as error:
                if not is_refusal(error, type(method).__module__):
                    raise
                refused[method] = str(error)
        running = {title(method) for method in usable}
        reasons = {
            f"{title(method)} at {method.budget:g}" if title(method) in running else title(method): why
            for method, why in refused.items()
        }
        return usable, reasons

    def _telling(self) -> list[pd.DataFrame]:
        """Return the first question, and the one with the image that is likely to have most tokens."""
        questions, largest = self.split.questions, self.split.largest()
        places = {0} | {place for place, ids in enumerate(questions["image_ids"]) if largest in ids}
        return [questions.iloc[[place]] for place in sorted(places)[:2]]

    @torch.no_grad()
    def _ask(
        self,
        methods: Sequence[Method | str],
        questions: pd.DataFrame,
        asking: CommonBatches,
        done: int = 0,
        whole: QuestionInputs | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Yield the rows of some questions for each method behind the first `done`, in order.

        Where memory runs out, the questions are asked in two halves.
        """
        if done == len(methods):
            return
        try:
            for rows in self._ask_together(
                methods, questions, asking, done, whole or self._reader.read(questions, tower_depths(methods))
            ):
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
        whole: QuestionInputs,
    ) -> Iterator[pd.DataFrame]:
        """As `_ask`: the prompts of as many methods as `_WAITING` batches hold are answered together."""
        select = NestedSelections(methods)
        waiting: list[AskedPrompts] = []
        for place, method in enumerate(methods[done:], done + 1):
            waiting.append(self._shorten(method, questions, whole, select))
            columns = sum(len(prompt) for asked in waiting for prompt in asked.prompts)
            if columns >= _WAITING * asking.prompts * whole.prompts["input_ids"].shape[1] or place == len(methods):
                answers = self._answers(waiting, asking, whole.prompts["input_ids"].shape[1])
                for asked in waiting:
                    yield self._rows(asked, questions, answers)
                waiting = []

    def _shorten(
        self, method: Method | str, questions: pd.DataFrame, whole: QuestionInputs, select: NestedSelections
    ) -> AskedPrompts:
        """Return the shortened prompts of a method; those of one that drops tokens inside are answered at once."""
        if method == BLIND:
            return self._without_images(questions)
        acting = UniformGrid(1.0) if isinstance(method, str) else method
        inputs = self._resized(acting, questions, whole)
        selection = select(acting, inputs.tokens, inputs.grid)
        call = shorten_call(self.backbone, acting, inputs.tokens, selection, inputs.prompts, self.positions)
        words = self._words(call.inputs)
        if drops_inside(acting):
            with call.running() as passage:
                output = self.backbone.model.generate(**call.inputs, **self._options)
            new = list(output[:, call.inputs["input_ids"].shape[1] :])
            layers = inputs.by_question(passage.layers)
            return AskedPrompts(method, [], [], layers, words, inputs.before, _shares(inputs, passage.left), new)
        picks = picks_of(selection)
        grouped: list[list[Hashable]] = [[] for _ in range(len(questions))]
        for row, pick in zip(inputs.rows.tolist(), picks, strict=True):
            grouped[row].append(pick)
        kept: list[Hashable] = [(inputs.grid, tuple(group)) for group in grouped]
        shown = [tuple(ids) for ids in questions["image_ids"]]
        begins_like = list(zip(shown, kept, strict=True))
        short = split_prompts(self.backbone, call.inputs, inputs.rows, begins_like)
        layers = inputs.by_question(selection.counts[:, None].expand(-1, self.backbone.decoder_layers))
        return AskedPrompts(
            method, list(enumerate(kept)), short, layers, words, inputs.before, _shares(inputs, selection)
        )

    def _without_images(self, questions: pd.DataFrame) -> AskedPrompts:
        prompts = self.writer.write(questions["question"].tolist(), [[]] * len(questions))
        if hasattr(self.backbone.core, "rope_deltas"):
            self.backbone.core.rope_deltas = None
        keys = [(BLIND, row) for row in range(len(questions))]
        short = split_prompts(self.backbone, prompts, torch.arange(0), keys)
        nothing = np.zeros(len(questions), int)
        layers = np.zeros((len(questions), self.backbone.decoder_layers), int)
        return AskedPrompts(BLIND, keys, short, layers, self._words(prompts), nothing)

    def _resized(self, method: Method, questions: pd.DataFrame, whole: QuestionInputs) -> QuestionInputs:
        """Return the inputs with images of the size that a method wants."""
        if not method.acts_on_pixels:
            return whole
        own = self.grid
        grid = self.backbone.target_grid(method, **whole.images) if own is None else method.target_grid(*own)
        return whole if grid in (None, own) else self._reader.read(questions, method.tower_depths, grid)

    def _words(self, prompts: Mapping[str, Tensor]) -> list[int]:
        """Return the number of columns of each prompt that hold neither padding nor a visual token."""
        marks = self.backbone.placeholders(prompts["input_ids"])
        words: list[int] = (prompts["attention_mask"].bool() & ~marks).sum(1).tolist()
        return words

    def _answers(self, waiting: Sequence[AskedPrompts], asking: CommonBatches, width: int) -> dict[Hashable, Tensor]:
        """Return the answer of each prompt by its key; prompts of one key are answered once."""
        prompts = {key: prompt for asked in waiting for key, prompt in zip(asked.keys, asked.prompts, strict=True)}
        return dict(zip(prompts, asking.answer(list(prompts.values()), width), strict=True))

    def _rows(self, asked: AskedPrompts, questions: pd.DataFrame, answers: Mapping[Hashable, Tensor]) -> pd.DataFrame:
        method, layers = asked.method, asked.layers
        output = [answers[key] for key in asked.keys] if asked.answers is None else asked.answers
        texts = self.processor.batch_decode([new.tolist() for new in output], skip_special_tokens=True)
        predictions = np.array([text.strip() for text in texts])
        before = asked.before
        return pd.DataFrame(
            {
                "backbone": self.name,
                "revision": self.revision or None,
                "dtype": str(self.backbone.model.dtype).removeprefix("torch.") + self.settings,
                "template": self.writer.template_hash,
                "dataset": self.split.dataset,
                "split": self.split.name,
                **{name: questions[name].to_numpy() for name in ("question_id", "image_id", "question_type")},
                "method": method if isinstance(method, str) else method.name,
                **knob_columns(method),
                "positions": self.backbone.positions_of(self.positions),
                "budget": self._budget(method),
                "tokens_before": before,
                "tokens_kept": layers[:, -1],
                "tokens_average": layers.mean(1),
                "prefill_gflops": [
                    self._gflops.prefill(profile, text)
                    for profile, text in zip(layers.tolist(), asked.words, strict=True)
                ],
                "scoring_gflops": [
                    self._gflops.scoring(method, visual, text)
                    for visual, text in zip(np.broadcast_to(before, len(questions)).tolist(), asked.words, strict=True)
                ],
                "on_objects": np.nan if asked.on_objects is None else asked.on_objects,
                "prompt": [short_hash(text) for text in questions["question"]],
                "metric": questions["metric"].to_numpy(),
                "prediction": predictions,
                "answer": questions["answer"].to_numpy(),
                "correct": score_each(list(predictions), questions),
                "chance": chance(questions),
            }
        )

    def _budget(self, method: Method | str) -> float:
        """Return what rows say that a method was asked for; all tokens are a share of 1 where images differ."""
        if method == FULL:
            return 1.0 if self.grid is None else float(self.grid[0] * self.grid[1])
        return 0.0 if isinstance(method, str) else float(method.budget)

    @functools.cached_property
    def _options(self) -> dict[str, Any]:
        return {"max_new_tokens": self._answer_tokens, "do_sample": False}

    @functools.cached_property
    def _gflops(self) -> Gflops:
        return Gflops(self.backbone.model.config)

    @functools.cached_property
    def writer(self) -> PromptWriter:
        """What writes the prompts."""
        model = self.backbone.model
        return PromptWriter(self.processor, model.device, model.dtype, self.split.kind)

    @functools.cached_property
    def _reader(self) -> QuestionReader:
        return QuestionReader(self.backbone, self.writer, self.split, self.encoded, Objects(self.split))

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the images' tokens, where all have the same and were encoded before."""
        return self._reader.grid

    @functools.cached_property
    def _answer_tokens(self) -> int:
        chosen = self.new_tokens or self.split.new_tokens
        if chosen:
            return chosen
        answers = sorted({answer for several in self.split.questions["answers"] for answer in several})
        return max(map(len, self.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]))

    def on_objects(self, image_id: str) -> np.ndarray:
        """Return which tokens' middles lie in an object's box, bool (N,), for an image in raster order.

        Raises
        ------
        ValueError
            If images have no fixed grid.
        """
        if self.grid is None:
            raise ValueError("the images of this model have no fixed grid of tokens")
        return self._reader.objects.inside(image_id, *self.grid).reshape(-1)


def _shares(inputs: QuestionInputs, kept: Selection) -> list[float] | None:
    if inputs.on_objects is None:
        return None
    return shares_on_objects(kept, inputs.tokens.grid, inputs.on_objects)
