"""lmms-eval models ``idsel_<name>``: the harness's own model ``<name>``, whose calls of ``generate`` are pruned.

The harness finds them by its entry point group. Their arguments are those of the model that they wrap, and beside them
``method``, ``budget``, any knob of the method, and what `pruned` lists:

    lmms-eval --model idsel_llava_hf --tasks pope --limit 50 \
      --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=idselection,budget=64,gamma=10.0
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections import Counter
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
from tqdm import tqdm

from idsel_core.backbones import ClipCompanion, Relevance, adapter_for
from idsel_core.pruning import prune
from idsel_core.study.harness.arguments import check_given, knobs_in, read_template
from idsel_core.study.harness.guards import WithoutEmptyMedia, content_of, image_id, logged_errors, watched
from idsel_core.study.harness.journal import Journal, digest
from idsel_core.study.harness.registry import PREFIX, WRAPPED, check_version, class_path, native_name
from idsel_core.study.harness.setting import Setting, Unpruned, setting_from
from idsel_core.study.open_backbone import open_companion, weights_hash
from idsel_core.study.paths import PACKAGE, code_of
from idsel_core.study.refusals import is_refusal
from idsel_core.study.store.provenance import installed, sha256

_OWN: Final = ("budget", "positions", "budget_scope", "companion", "journal")


def __getattr__(attribute: str) -> type:
    """Make a class when the registry asks for it by its dotted path, such as ``...models.chat__llava_hf``."""
    kind, _, name = attribute.partition("__")
    path = class_path(kind, name) if kind in ("simple", "chat") and name in WRAPPED else None
    if path is None:
        raise AttributeError(attribute)
    module, _, inner = path.rpartition(".")
    _keep_prompts_of_the_wrapped_models()
    home: Any = importlib.import_module(module)
    if hasattr(home, "tqdm"):
        # One bar a run is enough; the class would draw one a request.
        home.tqdm = functools.partial(_no_bar, home.tqdm)
    return pruned(getattr(home, inner), name)


def _no_bar(bar: Any, *args: Any, **kwargs: Any) -> Any:
    return bar(*args, **{**kwargs, "disable": True})


def _keep_prompts_of_the_wrapped_models() -> None:
    """Let tasks that have prompts for a model, by its exact name, give them to the model that wraps it too."""
    from lmms_eval.tasks import TaskManager

    TaskManager.model_name = property(
        lambda manager: native_name(vars(manager).get("model_name")),
        lambda manager, name: vars(manager).update(model_name=name),
    )


def pruned(base: Any, name: str) -> type:
    """Return a class of the harness whose calls of ``generate`` run under `prune`.

    Beside the arguments of `base`, its instances take

    method, budget, positions, budget_scope
        As for `setting_from`; with knobs of the method as further arguments.
    companion : str
        Hub id or folder of a CLIP for methods that read relevance; by default the folder ``companion`` of a local
        model, where it has one.
    template : str
        A chat template in place of the checkpoint's: ``vicuna_v1``, or a file.
    journal : str
        File in which answers are kept, from which a killed run resumes.

    Parameters
    ----------
    base : type
        A class of ``lmms_eval.models``.
    name : str
        The harness's name of it.
    """
    known = [parameter for parameter in inspect.signature(base.__init__).parameters if parameter != "self"]

    class Pruned(base):  # type: ignore[misc]
        """A model of the harness under `prune`."""

        native_name = name

        def __init__(
            self,
            method: str = "full",
            budget: int | float | None = None,
            positions: Any = None,
            budget_scope: Any = "image",
            companion: str = "",
            template: str = "",
            journal: str = "",
            **given: Any,
        ) -> None:
            knobs, given = self.checked(method, template, **given)
            setting = setting_from(method, budget, positions, budget_scope, knobs)
            super().__init__(**given)
            self.arguments = {**given, "template": template, "companion": companion}
            self.processor_name = next(n for n in ("processor", "_image_processor", "_processor") if hasattr(self, n))
            processor = getattr(self, self.processor_name)
            if template:
                processor.chat_template = read_template(template)
            setattr(self, self.processor_name, WithoutEmptyMedia(processor))
            self.model.eval()
            self.relevance = read_relevance(given["pretrained"], companion, processor, self.device)
            self.adapter = adapter_for(self.model, self.relevance)
            self.notes: dict[tuple[str, int], dict[str, Any]] = {}
            self.times: Counter[tuple[str, int]] = Counter()
            self.leaves_on_error = False
            self._weights = ""
            self.use(setting, Path(journal) if journal else None)

        @classmethod
        def checked(cls, method: str = "full", template: str = "", **given: Any) -> tuple[dict[str, Any], ...]:
            """Return the knobs of the method and the arguments of the class; refuse what neither it nor prune takes."""
            check_version()
            if template:
                read_template(template)
            rest = {one: value for one, value in given.items() if one not in _OWN}
            knobs = knobs_in(rest, method, known, name)
            check_given(base, rest, name)
            return knobs, rest

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            """Make a model for the harness's own command, which ends well whatever is raised, but for SystemExit."""
            try:
                model: Any = super().create_from_arg_string(arg_string, additional_config)
            except Exception as error:
                raise SystemExit(f"error: {PREFIX}{name}: {error}") from error
            model.leaves_on_error = True
            return model

        def use(self, setting: Setting, journal: Path | None = None) -> None:
            """Prune by another setting from now on, and forget the notes of the one before.

            Parameters
            ----------
            setting : Setting
                How calls are pruned.
            journal : Path, optional
                As for `Journal`.
            """
            self.setting, self.notes, self.times = setting, {}, Counter()
            self.run = None
            if setting.method is not None:
                try:
                    self.run = prune(
                        self.model,
                        setting.method,
                        positions=setting.positions,
                        relevance=self.relevance,
                        budget_scope=setting.budget_scope,
                        processor=getattr(self, self.processor_name).processor,
                    )
                except ValueError as error:
                    if not is_refusal(error):
                        raise
                    raise Unpruned(str(error)) from error
            self.journal = Journal(journal, {} if journal is None else self.key())

        def key(self) -> dict[str, Any]:
            """Return what every answer of this setting depends on, ready for JSON."""
            self._weights = self._weights or weights_hash(self.model)
            processor = getattr(self, self.processor_name).processor
            dual = getattr(self.relevance, "dual_encoder", getattr(self.relevance, "clip", None))
            return {
                "setting": repr(self.setting),
                "model": name,
                "arguments": {one: str(value) for one, value in sorted(self.arguments.items()) if one != "pretrained"},
                "weights": [self._weights, weights_hash(dual)],
                "processor": digest([repr(processor), str(getattr(processor, "chat_template", None))]),
                "device": f"{self.device} {self.model.dtype}",
                "code": digest({str(path.relative_to(PACKAGE)): sha256(path) for path in code_of(("",))}),
                "packages": installed() | {one: version(one) for one in ("lmms-eval", "datasets", "pillow")},
            }

        def generate_until(self, requests: list[Any]) -> list[Any]:
            """Answer requests one by one; raise what goes wrong with any of them."""
            try:
                title, hidden = f"{name}, {self.setting.title}", self.rank != 0
                bar = tqdm(requests, desc=title, unit="answer", mininterval=2, disable=hidden)
                return [GenerationResult(text=self._answer(request)) for request in bar]
            except Exception as error:
                if self.leaves_on_error:
                    raise SystemExit(f"error: {error}") from error
                raise

        def _answer(self, request: Any) -> str:
            where = f"task {request.task_name}, question {request.doc_id}"
            asked = self._asked(request)
            # A task that wants several answers asks the same several times.
            self.times[request.task_name, request.doc_id] += 1
            asked["time"] = self.times[request.task_name, request.doc_id]
            note = self.journal.get(digest(asked))
            if note is None:
                note = self._asked_now(request, where) | {"image_id": image_id(asked["content"])}
                self.journal.add(digest(asked), note)
            self.notes[request.task_name, request.doc_id] = note
            return str(note["text"])

        def _asked(self, request: Any) -> dict[str, Any]:
            """Return what the answer to a request depends on, ready for JSON."""
            *_, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            context, one, other = request.args[:3]
            show, options = (other, one) if self.is_simple else (one, other)
            return {
                "task": task,
                "doc_id": doc_id,
                "context": context,
                "content": content_of(show(doc)),
                "options": content_of(options),
            }

        def _asked_now(self, request: Any, where: str) -> dict[str, Any]:
            # The harness's classes write into the options, which are those of the next run too.
            given = copy.copy(request)
            given.arguments = tuple(copy.deepcopy(a) if isinstance(a, dict) else a for a in request.args)
            if self.run is not None:
                self.run.report.clear()
            with self.run or nullcontext(), watched(self.model) as seen, logged_errors() as logged:
                answers = super().generate_until([given])
            if seen.errors:
                kind = Unpruned if self.run is not None and is_refusal(seen.errors[0]) else RuntimeError
                raise kind(f"{where}: {seen.errors[0]}") from seen.errors[0]
            if logged:
                raise RuntimeError(f"{where}: {logged[0]}")
            if len(seen.prompts) != 1 or len(answers) != 1:
                raise RuntimeError(f"{where}: {len(answers)} answers came of {len(seen.prompts)} calls of the model")
            return {"text": unwrap_generation_output(answers[0])[0], **self._tokens(*seen.prompts[0])}

        def _tokens(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> dict[str, Any]:
            """Return the visual tokens of a prompt before and in each layer, its other tokens, and milliseconds."""
            before = int(self.adapter.placeholders(input_ids).sum())
            text = int(input_ids.numel() if mask is None else mask.sum()) - before
            note: dict[str, Any] = {"before": before, "text_tokens": text, "encode_ms": None, "select_ms": None}
            if self.run is None or not before:
                return note | {"layers": [before] * self.adapter.decoder_layers}
            report = self.run.report
            if not report:
                raise Unpruned(f"a prompt of {before} visual tokens was answered with all of them")
            note |= {one: sum(getattr(record, one) for record in report) for one in ("encode_ms", "select_ms")}
            layers = zip(*(record.layers for record in report), strict=True)
            return note | {"before": sum(record.before for record in report), "layers": [sum(each) for each in layers]}

        def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
            """Refuse: several turns are not pruned here."""
            raise Unpruned("tasks of several turns are not asked under prune()")

        def generate_visual_cot(self, requests: list[Any]) -> list[Any]:
            """Refuse: images that the model draws are not pruned here."""
            raise Unpruned("tasks whose model draws images are not asked under prune()")

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            """Refuse: log likelihoods are not pruned here."""
            raise Unpruned("tasks that compare log likelihoods are not asked under prune()")

        def clean(self) -> None:
            """Keep the model for the next setting, where the harness would delete it after every evaluation."""
            if self.leaves_on_error:
                super().clean()

    Pruned.__name__ = Pruned.__qualname__ = f"Pruned{base.__name__}"
    return Pruned


def read_relevance(pretrained: str, companion: str, processor: Any, device: Any) -> Relevance | None:
    """Load the companion of a model: a CLIP by its name, or the one in the folder of a local model.

    Parameters
    ----------
    pretrained : str
        Hub id or folder of the model.
    companion : str
        Hub id or folder of a CLIP, "" for that of the model's own folder, if any.
    processor : ProcessorMixin
        Of the model.
    device : torch.device
        Where the companion runs.
    """
    if companion:
        return ClipCompanion.from_pretrained(companion, processor.tokenizer, device=device)
    return open_companion(Path(pretrained), device)
