"""Evaluate methods on a data set of questions about images: one row a question.

Encode the images of a part once, or try one method, from the command line:

    python -m idsel_core.evaluation encode --part test
    python -m idsel_core.evaluation try --part validation --method idselection --budget 64
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm
from transformers import VisionTextDualEncoderModel

from idsel_core.backbones import Backbone, Companion, Encoded, adapter_for
from idsel_core.backbones.layers import dropping
from idsel_core.checkpoints import Checkpoint
from idsel_core.cost import flops_prefill
from idsel_core.devices import check_device
from idsel_core.loading import load
from idsel_core.methods import Method, UniformGrid, drops_inside, get_method, list_methods
from idsel_core.methods.scored import Scored
from idsel_core.parts import BLIND, FULL, Part, read_part
from idsel_core.paths import CACHE, DATA, MODEL
from idsel_core.prefix import generate_sharing
from idsel_core.provenance import installed, sha256
from idsel_core.results import replace as replace_file
from idsel_core.selection import Selection
from idsel_core.tokens import VisualTokens

_VIEWS = ("cls_attention", "received_attention", "image_key")


def load_model(folder: Path = MODEL, device: str = "cpu") -> tuple[Backbone, Any]:
    """Load a LLaVA-like model with its processor, and the companion for relevance where the folder holds one.

    Parameters
    ----------
    folder : Path
        Laid out like a hub checkpoint; weights as safetensors. No code in it is ever run.
    device : str
        As torch names it.

    Returns
    -------
    tuple
        The backbone, and the processor.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If its weights are missing, damaged or do not fit, or there is no such device.
    """
    check_device(device)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: run `make env` to assemble the embedded backbone")
    companion, dual = folder / "companion", None
    try:
        model, processor = load(folder, dtype="auto", local_files_only=True)
        if companion.is_dir():
            read: Any = VisionTextDualEncoderModel.from_pretrained
            dual = read(companion, trust_remote_code=False, use_safetensors=True, local_files_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{error}; `make env` makes the embedded backbone anew once {folder} is gone") from error
    relevance = None if dual is None else Companion(dual.to(device).eval())
    return adapter_for(model.to(device), relevance), processor


def image_pixels(processor: Any, pictures: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Return the pixel values of images, (I, 3, height, width)."""
    pixels: Tensor = processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    return pixels.to(device)


@torch.no_grad()
def encode_part(
    backbone: Backbone, processor: Any, part: Part, batch: int = 8, depths: Sequence[float] | None = None
) -> Encoded:
    """Run the vision tower once on each image of a part, with a progress bar.

    Parameters
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor.
    part : Part
        Whose images to encode.
    batch : int
        Images at a time.
    depths : sequence of float, optional
        Keep all views of the tower, also at these depths of it; by default the few small ones that most methods read.
    """
    pieces: list[dict[str, Tensor]] = []
    names = list(part.images.index)
    for start in tqdm(range(0, len(names), batch), desc=f"encode {part.name}", unit="batch"):
        pictures = [part.picture(name) for name in names[start : start + batch]]
        encoded = backbone.encode(image_pixels(processor, pictures, backbone.model.device), depths=depths or ())
        pieces.append(encoded.tensors(None if depths is not None else [v for v in _VIEWS if v in encoded.views]))
    return Encoded.from_tensors({name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]})


def fingerprint(part: Part, folder: Path = MODEL) -> dict[str, str]:
    """Return what an encoding depends on: hashes of the images and of the weights."""
    weights = sorted(folder.glob("*.safetensors"))
    return {"images": sha256(part.files[1]), **{path.name: sha256(path) for path in weights}}


def write_encoding(encoded: Encoded, path: Path, made_from: dict[str, str]) -> None:
    """Write an encoding with what it was made from, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, save(encoded.tensors(), metadata=made_from))


def read_encoding(path: Path, made_from: dict[str, str]) -> Encoded | None:
    """Read a stored encoding; None where there is none, or one of other images or weights, or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != made_from:
                return None
        return Encoded.from_tensors(load_file(path))
    except (OSError, SafetensorError):
        return None


@dataclass(frozen=True)
class Study:
    """A model, a part of a data set and its images, encoded once and shared by all methods and budgets.

    Attributes
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor.
    part : Part
        Questions and images.
    encoded : Encoded
        One row an image, in the order of ``part.images``.
    name : str
        What the results call the model.
    positions : {"compact", "keep"}
        As for `prune`.
    """

    backbone: Backbone
    processor: Any
    part: Part
    encoded: Encoded
    name: str = "embedded"
    positions: str = "compact"

    def run(self, methods: Iterable[Method | str], batch: int = 50, checkpoint: Path | None = None) -> pd.DataFrame:
        """Ask all questions with each method, with a progress bar.

        Parameters
        ----------
        methods : iterable of Method or str
            Methods; `FULL` (all tokens) and `BLIND` (no image) are allowed beside them.
        batch : int
            Questions at a time.
        checkpoint : Path, optional
            Folder where rows are kept as they come, such as `Results.checkpoint`: after a kill, the same call goes on
            there. A run of other methods, questions, weights or code starts anew.

        Returns
        -------
        DataFrame
            One row a question and method, ready for `Results.write`.

        Raises
        ------
        OSError
            If nothing can be written to the checkpoint.
        """
        methods = list(methods)
        questions = self.part.questions
        steps = [(start, method) for start in range(0, len(questions), batch) for method in methods]
        kept = Checkpoint(checkpoint, {} if checkpoint is None else self._key(methods, batch))
        with tqdm(total=len(methods) * len(questions), desc=f"ask {self.part.name}", mininterval=5) as bar:
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
        model, code = self.backbone.model, Path(__file__).parent
        return {
            "methods": [repr(method) for method in methods],
            "batch": batch,
            "backbone": self.name,
            "positions": self.positions,
            "questions": hashlib.sha256(self.part.questions.to_json().encode()).hexdigest(),
            "images": sha256(self.part.files[1]),
            "weights": [_weights(part) for part in (model, getattr(self.backbone.relevance, "dual_encoder", None))],
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
        asked = self.part.questions.head(1)
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
            grid = acting.wanted_grid(*self.grid)
            inputs = whole if grid == self.grid else self._inputs(questions, self._encoded(questions, grid))
            selection = acting.select(inputs.tokens)
            short = self.backbone.shorten(inputs.prompts, inputs.tokens, selection, self.positions)
            sharing = torch.arange(len(questions)) if drops_inside(acting) else _alike(questions, selection)
            with dropping(self.backbone, acting, inputs.tokens, selection, short) as passage:
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
                "dataset": self.part.files[0].parent.name,
                "part": self.part.name,
                **{name: questions[name].to_numpy() for name in ("question_id", "image_id", "family")},
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
            return self.encoded.take(torch.from_numpy(self.part.images.index.get_indexer(pd.Index(names))[owner]))
        pixels = image_pixels(self.processor, [self.part.picture(name) for name in names], self.backbone.model.device)
        return self.backbone.encode(pixels, grid=grid).take(torch.from_numpy(owner))

    @torch.no_grad()
    def _inputs(self, questions: pd.DataFrame, encoded: Encoded) -> _Inputs:
        prompts = self._prompts(questions, encoded.placeholders.tolist())
        return _Inputs(prompts, self.backbone.visual_tokens(encoded, **prompts))

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
        answers = self.part.questions["answer"].unique().tolist()
        return max(map(len, self.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]))

    def on_objects(self, image_id: str) -> np.ndarray:
        """Return which tokens' middles lie in an object's box, bool (N,), for an image in raster order."""
        rows, columns = self.grid
        width, height = self.part.picture(image_id).size
        x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows)[:, None] + 0.5) * height / rows
        inside = np.zeros((rows, columns), bool)
        for box in cast(list[dict[str, int]], self.part.images.at[image_id, "objects"]):
            inside |= (x >= box["left"]) & (x < box["right"]) & (y >= box["top"]) & (y < box["bottom"])
        return inside.reshape(-1)

    @functools.cached_property
    def _objects(self) -> dict[str, np.ndarray]:
        return {name: self.on_objects(name) for name in self.part.images.index}

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


def _weights(model: torch.nn.Module | None) -> str:
    """Return a hash of a model's weights, whatever their dtype."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()) if model is not None else ():
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


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
    part: str,
    *,
    limit: int = 0,
    model: Path | str = MODEL,
    data: Path | str = DATA,
    cache: Path | str = CACHE,
    device: str = "cpu",
    depths: Sequence[float] | None = None,
) -> Study:
    """Load the model and a part, and its encoding; encode and store it first where that is not done yet.

    Parameters
    ----------
    part, limit, data
        As for `read_part`.
    model, device
        As for `load_model`.
    cache : Path or str
        Folder of stored encodings.
    depths : sequence of float, optional
        As for `encode_part`; such encodings are large and are not stored.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_part` and `load_model`.
    """
    model, whole = Path(model), read_part(part, Path(data))
    chosen = read_part(part, Path(data), limit)
    backbone, processor = load_model(model, device)
    if depths is not None:
        return Study(backbone, processor, chosen, encode_part(backbone, processor, chosen, depths=depths))
    made_from, path = fingerprint(whole, model), Path(cache) / f"{part}.safetensors"
    encoded = read_encoding(path, made_from)
    if encoded is not None:
        rows = whole.images.index.get_indexer(chosen.images.index)
        encoded = encoded if limit == 0 else encoded.take(torch.from_numpy(rows))
    else:
        encoded = encode_part(backbone, processor, chosen)
        if limit == 0:
            write_encoding(encoded, path, made_from)
    return Study(backbone, processor, chosen, encoded)


def accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each method and budget, in all and by family, with the chance level."""
    by = ["method", "budget"]
    chance = rows.drop_duplicates("question_id").assign(method="chance", budget=0.0, correct=lambda r: r["chance"])
    rows = pd.concat([rows.assign(correct=rows["correct"].astype(float)), chance], ignore_index=True)
    wide = rows.pivot_table(index=by, columns="family", values="correct", sort=False)
    wide.insert(0, "all", rows.groupby(by, sort=False)["correct"].mean())
    return wide


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--part", default="validation", help="part of the data set (default: %(default)s)")
    common.add_argument("--model", type=Path, default=MODEL, help="model folder (default: %(default)s)")
    common.add_argument("--data", type=Path, default=DATA, help="data set folder (default: %(default)s)")
    common.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", parents=[common], help="encode the images of a part once")
    encode.add_argument("--out", type=Path, help="file to write (default: .cache/encodings/PART.safetensors)")
    attempt = commands.add_parser("try", parents=[common], help="print the accuracy of one method")
    attempt.add_argument("--method", default="idselection", help=f"one of {', '.join((FULL, BLIND, *list_methods()))}")
    attempt.add_argument("--budget", type=_budget, default=64, help="visual tokens, or a share such as 0.1")
    attempt.add_argument("--knob", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="e.g. gamma 5")
    attempt.add_argument("--limit", type=int, default=0, help="about this many questions; 0 is all")
    return parser


def _budget(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _method(given: argparse.Namespace) -> Method | str:
    if given.method in (FULL, BLIND):
        return str(given.method)
    plain = get_method(given.method, budget=given.budget)
    kinds = {field.name: type(getattr(plain, field.name)) for field in fields(plain)}
    return get_method(given.method, budget=given.budget, **{k: kinds.get(k, str)(v) for k, v in given.knob})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "encode":
            part = read_part(given.part, given.data)
            backbone, processor = load_model(given.model, given.device)
            path = given.out or CACHE / f"{given.part}.safetensors"
            write_encoding(encode_part(backbone, processor, part), path, fingerprint(part, given.model))
            print(path)
            return 0
        method = _method(given)
        study = open_study(given.part, limit=given.limit, model=given.model, data=given.data, device=given.device)
        print(accuracy(study.run([method])).round(3).to_string())
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
