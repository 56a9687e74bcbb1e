"""Full prompts of questions with their visual tokens, from stored encodings or from a tower pass now."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from idsel_core.backbones import Backbone, Encoded
from idsel_core.pruning.pipeline import read_tokens
from idsel_core.study.dataset import Split
from idsel_core.study.encodings import image_pixels
from idsel_core.study.full_prompts import PromptWriter
from idsel_core.study.objects import Objects
from idsel_core.study.sources.split import PLURAL
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class QuestionInputs:
    """Full prompts and their visual tokens; the views that methods read are computed once for all of them.

    Attributes
    ----------
    prompts : dict[str, Tensor]
        Arguments of the model for B prompts, without pixels.
    tokens : VisualTokens
        I rows, one an image.
    rows : Tensor
        Prompt of each image, int64 (I,).
    grid : tuple[int, int], optional
        Of all images, where they have one.
    images : dict[str, Any]
        Arguments of the tower, where it was run.
    on_objects : list[ndarray], optional
        Which places of the whole image's grid lie on an object, for each prompt.
    """

    prompts: dict[str, Tensor]
    tokens: VisualTokens
    rows: Tensor
    grid: tuple[int, int] | None
    images: dict[str, Any]
    on_objects: list[np.ndarray] | None

    def by_question(self, values: Tensor) -> np.ndarray:
        """Sum values (I, ...) over the images of each prompt, (B, ...)."""
        total = np.zeros((len(self.prompts["input_ids"]), *values.shape[1:]), int)
        np.add.at(total, self.rows.cpu().numpy(), values.cpu().numpy())
        return total

    @functools.cached_property
    def before(self) -> np.ndarray:
        """Visual tokens of each prompt's images, int (B,)."""
        return self.by_question(self.tokens.full_lengths)


@dataclass(frozen=True, eq=False)
class QuestionReader:
    """Reads the questions of a split, with their images, for one model.

    Attributes
    ----------
    backbone : Backbone
        The model.
    writer : PromptWriter
        Writes its prompts.
    split : Split
        Questions and images.
    encoded : Encoded, optional
        One row an image, in the order of ``split.images``, of a model with a fixed grid. Without it, images are encoded
        when their questions are read.
    objects : Objects
        Where the split's boxes are.
    """

    backbone: Backbone
    writer: PromptWriter
    split: Split
    encoded: Encoded | None
    objects: Objects

    @functools.cached_property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the images' tokens, where all have the same and were encoded before."""
        if self.encoded is None:
            return None
        rows, columns = (self.encoded.grid[0].amax(0) + 1).tolist()
        return rows, columns

    @torch.no_grad()
    def read(
        self, questions: pd.DataFrame, depths: Sequence[float] = (), grid: tuple[int, int] | None = None
    ) -> QuestionInputs:
        """Return full prompts and their visual tokens.

        Parameters
        ----------
        questions : DataFrame
            Rows of ``split.questions``.
        depths : sequence of float
            Further depths of the tower, where the images are encoded now.
        grid : tuple[int, int], optional
            Rows and columns of tokens to which the images are resized.

        Raises
        ------
        ValueError
            If a question shows no image, or the processor has none to give.
        """
        asked = questions["question"].tolist()
        images: dict[str, Any] = {}
        if self.encoded is not None:
            encoded = self._stored(questions, grid)
            prompts = self.writer.write_with_placeholders(asked, encoded.placeholders.tolist())
        else:
            shown = [tuple(ids) for ids in questions["image_ids"]]
            read = {name: self._image(name) for name in dict.fromkeys(itertools.chain(*shown))}
            given = [[read[name] for name in ids] for ids in shown]
            if not all(given):
                raise ValueError(
                    f"question {questions['question_id'].iloc[given.index([])]!r} shows no {self.split.kind}"
                )
            prompts = self.writer.write(asked, given)
            encoded, images = self._encode(asked, shown, given, prompts, depths, grid)
        prompts = {name: value for name, value in prompts.items() if name not in self.backbone.pixel_inputs}
        tokens = read_tokens(self.backbone, encoded, prompts)
        assert tokens.slots is not None
        rows = tokens.slots.rows
        on_objects = self._on_objects(questions, tokens, rows)
        return QuestionInputs(prompts, tokens, rows, grid or self.grid, images, on_objects)

    def _stored(self, questions: pd.DataFrame, grid: tuple[int, int] | None) -> Encoded:
        """Return the stored encodings of the questions' images, a row a question; of resized images anew."""
        assert self.encoded is not None
        names, owner = np.unique(questions["image_id"], return_inverse=True)
        if grid is None:
            rows = self.split.images.index.get_indexer(pd.Index(names))
            encoded = self.encoded.take(torch.from_numpy(rows))
            encoded = replace(encoded, features=self.backbone.project(encoded.encoder_features))
        else:
            pictures = [self.split.picture(name) for name in names]
            pixels = image_pixels(self.writer.processor, pictures, self.backbone.model.device)
            encoded = self.backbone.encode(pixels, grid=grid)
        return encoded.take(torch.from_numpy(owner))

    def _encode(
        self,
        asked: Sequence[str],
        shown: Sequence[tuple[str, ...]],
        given: Sequence[Sequence[Any]],
        prompts: Mapping[str, Any],
        depths: Sequence[float],
        grid: tuple[int, int] | None,
    ) -> tuple[Encoded, dict[str, Any]]:
        """Run the tower once for each different row of images, and return a row for each image of each prompt."""
        first = {ids: row for row, ids in reversed(list(enumerate(shown)))}
        rows = sorted(first.values())
        apart = (
            prompts
            if len(rows) == len(shown)
            else self.writer.write([asked[r] for r in rows], [given[r] for r in rows])
        )
        images = self.backbone.image_arguments(apart)
        if not images:
            raise ValueError(
                f"the processor gave none of {', '.join(self.backbone.image_inputs)}: the model does not read "
                f"{PLURAL[self.split.kind]}"
            )
        encoded = self.backbone.encode(grid=grid, tower_depths=depths, **images)
        if apart is prompts:
            return encoded, images
        owner = self.backbone.locate(
            apart["input_ids"], encoded.placeholders, encoded.video, apart.get("attention_mask")
        ).rows.tolist()
        of_prompt = {shown[row]: [place for place, own in enumerate(owner) if own == n] for n, row in enumerate(rows)}
        return encoded.take(torch.tensor([place for ids in shown for place in of_prompt[ids]])), images

    def _image(self, name: str) -> Any:
        """Return an image, or the samples of a clip at the model's rate."""
        return self.split.picture(name) if self.split.kind == "image" else self.split.clip(name, self.writer.rate)

    def _on_objects(self, questions: pd.DataFrame, tokens: VisualTokens, rows: Tensor) -> list[np.ndarray] | None:
        """Return which cells of each whole image's grid lie on an object, if that is known."""
        if not self.split.has_boxes or "crops" in tokens.sources or len(rows) != len(questions):
            return None
        sides = (tokens.grid.amax(1) + 1).tolist() if self.grid is None else [self.grid] * len(questions)
        return [self.objects.inside(name, *side) for name, side in zip(questions["image_id"], sides, strict=True)]
