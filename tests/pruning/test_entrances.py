"""Every way into a model is pruned: wrappers, trainers, pipelines, parts; what passes by is told at the end."""

import inspect
import os
import socket
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments, pipeline

from idsel_core import UniformGrid, prune
from idsel_core.loading import load
from idsel_core.methods import FastV
from idsel_core.study.paths import MODEL
from tests.support import families
from tests.support.families import FAMILIES
from tests.support.family_prompts import BARRED, GREEDY
from tests.support.llava_prompts import same, state
from tests.support.tiny import TinyLlava

LAYOUT = ((1,), (0,))
PASSED = r"passed by: the language model ran 2 times .* call model\.generate"
METHOD = UniformGrid(budget=0.5)
IGNORED = torch.tensor([families.PAD, *BARRED])


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request):
    return TinyLlava() if request.param == "llava" else FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def labelled(family, layout=LAYOUT, **options):
    inputs = family.prompts(layout, **options)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(torch.isin(inputs["input_ids"], IGNORED), -100)}


def filled(short, kept):
    """Give each column of a prompt the logits of the last kept one up to it; `kept` tells which were."""
    rows, place = [], -1
    for stays in kept:
        place += int(stays)
        rows.append(short[place])
    return torch.stack(rows)


@pytest.mark.feature("labels, gradients")
@torch.no_grad()
def test_logits_have_the_columns_of_the_prompt_as_given(family, model):
    for size in (0, 1):
        inputs = family.alone(((size,),), 0)
        with prune(model, METHOD) as run:
            full = model(**inputs).logits
            as_tuple = model(**inputs, return_dict=False)[0]
        with prune(model, METHOD, full_logits=False):
            short = model(**inputs).logits[0]
        ids, picks, seen = inputs["input_ids"][0].tolist(), run.report[0].indices, 0
        kept = []
        for token in ids:
            kept.append(token != families.IMAGE or seen in picks)
            seen += token == families.IMAGE
        assert len(short) == sum(kept) < len(kept) == full.shape[1]
        assert torch.equal(full[0], filled(short, kept))
        assert torch.equal(full, as_tuple)


@pytest.mark.feature("labels, gradients")
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_loss_of_full_logits_and_given_labels_is_that_of_the_call(family, model, side):
    inputs = labelled(family, side=side)
    with prune(model, METHOD):
        out = model(**inputs)
    shifted = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    torch.testing.assert_close(shifted, out.loss)


def test_full_logits_are_left_out_or_refused_where_they_cannot_be_had(family, model):
    inputs = family.alone(LAYOUT, 0)
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        with prune(model, METHOD), torch.no_grad():
            assert model(**inputs, logits_to_keep=1).logits.shape[1] == 1
    passes = []
    hooks = [part.register_forward_hook(lambda *_: passes.append(1)) for part in model.base_model.children()]
    with prune(model, METHOD, full_logits=True), pytest.raises(ValueError, match="leave out logits_to_keep"):
        model(**inputs, logits_to_keep=1)
    assert not passes
    for hook in hooks:
        hook.remove()
    with pytest.raises(ValueError, match=r"fastv drops tokens inside .* full_logits cannot be had"):
        prune(model, FastV(budget=4), full_logits=True)
    with pytest.raises(ValueError, match="full_logits must be True or False, not 'yes'"):
        prune(model, METHOD, full_logits="yes")


@pytest.fixture(scope="module")
def group():
    """A group of one process, for DistributedDataParallel."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.feature("every entrance prunes")
@pytest.mark.filterwarnings("ignore:find_unused_parameters")
def test_distributed_data_parallel_trains_pruned(family, model, group):
    inputs = labelled(family)
    with prune(model, METHOD):
        wanted = model(**inputs)
    wanted.loss.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for given in (wrapped, model):
        model.zero_grad()
        with prune(given, METHOD) as run:
            out = wrapped(**inputs)
            out.loss.backward()
        assert len(run.report) == 2 and torch.equal(out.logits, wanted.logits)
        torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient)
    model.zero_grad()


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, item):
        return {"item": item}


@pytest.mark.feature("every entrance prunes")
@pytest.mark.fast_for(family=["llava", "qwen2_5_vl", "qwen2_audio"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_trainer_trains_evaluates_and_predicts(family, smoothing, tmp_path):
    layout, seen = ((1,), (0,), (2,), (0,)), []

    def collate(items):
        return labelled(family, tuple(layout[one["item"]] for one in items))

    def metrics(found):
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        logits, labels = torch.tensor(logits[:, :-1]), torch.tensor(found.label_ids[:, 1:])
        seen.append((logits.shape[:2], labels.shape))
        entropies = [  # of each batch, as the loss is
            functional.cross_entropy(some.flatten(0, 1), of_them.flatten())
            for some, of_them in zip(logits.split(2), labels.split(2), strict=True)
        ]
        return {"entropy": torch.stack(entropies).mean().item()}

    options = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "max_steps": 2}
    options |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "label_smoothing_factor": smoothing}
    trainer = Trainer(
        family.build(),
        TrainingArguments(str(tmp_path), remove_unused_columns=False, logging_strategy="no", **options),
        data_collator=collate,
        train_dataset=Numbers(),
        eval_dataset=Numbers(),
        compute_metrics=metrics,
    )
    with prune(trainer.model, METHOD) as run:
        trainer.train()
        trained = len(run.report)
        found = trainer.evaluate()
        predicted = trainer.predict(Numbers())
    assert trained > 0 and len(run.report) > trained and all(r.after < r.before for r in run.report)
    assert all(logits == labels for logits, labels in seen) and len(seen) == 2
    assert predicted.metrics["test_entropy"] == found["eval_entropy"]
    if not smoothing:
        assert found["eval_entropy"] == pytest.approx(found["eval_loss"], rel=1e-5)


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_the_core_of_a_model_is_pruned_too(family, model):
    inputs, came = family.alone(LAYOUT, 0), []
    hooks = [
        model.base_model.register_forward_pre_hook(lambda *_: came.append("before")),
        model.base_model.register_forward_hook(lambda *_: came.append("after")),
    ]
    with prune(model, METHOD, full_logits=False) as run:
        states = model.base_model(**inputs).last_hidden_state
        assert came == ["before", "after"]
        logits = model(**inputs).logits
        assert came == ["before", "after"] * 2
    for hook in hooks:
        hook.remove()
    assert torch.equal(model.lm_head(states), logits) and len(run.report) == 2


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_parts_that_are_called_by_hand_are_told_of(family, model):
    inputs = family.alone(LAYOUT, 0)
    model(**inputs)  # transformers installs hooks of its own in the first call
    plain = state(model)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    decoder = getattr(model.base_model, "language_model", None) or model.base_model.text_model
    with pytest.warns(UserWarning, match=PASSED) as told, prune(model, METHOD):
        family.features(model, inputs)
        decoder(inputs_embeds=embeddings)
        decoder(inputs_embeds=embeddings)
    assert len(told) == 1 and told[0].filename == __file__
    with (
        pytest.warns(UserWarning, match=r"ran 1 times .* calls with inputs_embeds are not pruned"),
        prune(model, METHOD),
    ):
        family.features(model, inputs)
        model(inputs_embeds=embeddings)
    assert same(state(model), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with prune(model, METHOD):  # Features to look at, a pruned answer and text pass by rightly.
            family.features(model, inputs)
            model.generate(**inputs, **GREEDY)
        with prune(model, METHOD):
            decoder(inputs_embeds=embeddings)
            model(input_ids=torch.tensor([[5, 6]]))


def test_a_block_that_nothing_comes_to_is_told_of():
    tiny = TinyLlava().build()
    other, inputs = TinyLlava().build(), TinyLlava().prompts(LAYOUT)
    why = "without a call of its model: was a copy of it called, or another model"
    with pytest.warns(UserWarning, match=why), prune(tiny, METHOD):
        other.generate(**inputs, **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError), prune(tiny, METHOD):
            raise RuntimeError
        with prune(tiny, METHOD), prune(tiny, METHOD):
            tiny.generate(**inputs, **GREEDY)


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_hooks_of_accelerate_may_come_and_go_inside_a_block(family):
    hooks = pytest.importorskip("accelerate.hooks")

    class Seen(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, inputs = family.build(), family.alone(LAYOUT, 0)
    whole = model(**inputs).logits
    with prune(model, METHOD):
        wanted = model(**inputs).logits
    with prune(model, METHOD) as run:
        hooks.add_hook_to_module(model, seen := Seen())
        assert torch.equal(model(**inputs).logits, wanted)
    assert torch.equal(model(**inputs).logits, whole) and len(run.report) == 1 and seen.calls == 2
    with prune(model, METHOD) as run:
        assert torch.equal(model(**inputs).logits, wanted)
    assert torch.equal(model(**inputs).logits, whole) and len(run.report) == 1 and seen.calls == 4
    with prune(model, METHOD, full_logits=False) as run:
        hooks.remove_hook_from_module(model)  # takes the entrance away; the one of the core is still there
        assert model(**inputs).logits.shape[1] < wanted.shape[1]
    assert torch.equal(model(**inputs).logits, whole) and len(run.report) == 1 and seen.calls == 4


@pytest.mark.feature("every entrance prunes")
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_peft_models(family, kind):
    peft = pytest.importorskip("peft")
    inputs = labelled(family)
    if kind == "lora":
        settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    else:
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = peft.get_peft_model(family.build(), settings)
    if kind == "prefix":
        with prune(wrapped, METHOD), pytest.raises(ValueError, match="as input_ids, not as inputs_embeds"):
            wrapped(**inputs)
        return
    with prune(wrapped.get_base_model(), METHOD):
        wanted = wrapped.get_base_model()(**inputs)
    with prune(wrapped, METHOD) as run:
        out = wrapped(**inputs)
        out.loss.backward()
        assert wrapped.generate(**family.alone(LAYOUT, 0), **GREEDY).shape[0] == 1
    assert torch.equal(out.logits, wanted.logits) and len(run.report) == 3
    assert any(p.grad is not None and p.grad.any() for n, p in wrapped.named_parameters() if "lora" in n)


def test_a_data_parallel_model_on_several_devices_is_refused(model):
    wrapped = nn.DataParallel(model, device_ids=[])
    wrapped.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"DataParallel copies the model to 2 devices .* DistributedDataParallel"):
        prune(wrapped, METHOD)


def test_a_pipeline_is_pruned():
    from PIL import Image

    embedded, processor = load(MODEL)
    asker = pipeline("image-text-to-text", model=embedded, processor=processor, device="cpu")
    content = [{"type": "image", "image": Image.new("RGB", (336, 336), "red")}, {"type": "text", "text": "what color"}]
    options = {"text": [{"role": "user", "content": content}], "max_new_tokens": 2, "return_full_text": False}
    with prune(embedded, UniformGrid(budget=16)) as run:
        told = asker(**options)
    assert [(r.before, r.after) for r in run.report] == [(576, 16)]
    assert told[0]["generated_text"]
