"""Who asks: the user's words of the turn before the answer, in every family, whatever stands round them."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from idsel_core import adapter_for, prune
from idsel_core.backbones._shared.chat_template import ChatTemplate
from idsel_core.backbones._shared.known_processors import processor_of, remember_processor
from idsel_core.methods import FastV, MMTok, SparseVLM, TopK
from idsel_core.visual_tokens import Unavailable
from tests.support import tiny
from tests.support.chat import batch, plain, said, said_by, token_ids, tokenizer, user
from tests.support.families import BOS, FAMILIES, IMAGE, NO_FRAMES, PAD, VIDEO, Family
from tests.support.family_prompts import GREEDY

ONE, TWO = "is the red star near us?", "is the tan bird over at?"
THREE = "do not mix zebu or yak?"
ANSWERS = "yes, it is.", "no, not at all."
WORDS = [
    TopK(6, importance="instruction", instruction_layer=layer, instruction_tokens=which)
    for layer, which in ((0, "words"), (1, "words"), (1, "last"))
]


class Llava(Family):
    def build(self, attention="sdpa", **knobs):
        return tiny.build("clip", attention, **knobs)

    def marks(self, size):
        return [IMAGE] * self.counts[size]

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(1, 3, 24, 24, generator=generator)}


CHATS = {**FAMILIES, "llava": Llava("llava", {0: 36, 1: 36}, has_cls=True, refused=NO_FRAMES)}
del CHATS["paligemma"]


@pytest.fixture(scope="module", params=CHATS.values(), ids=CHATS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def inside(family):
    """Methods that drop tokens inside the language model, each of which leaves some of an image's."""
    chosen = (FastV(0.6), SparseVLM(0.8))
    return [method for method in chosen if method.name not in family.refused]


def size(family):
    """The size of image with most tokens."""
    return max((size for size in family.counts if size >= 0), key=lambda size: family.counts[size])


def one(family, messages, answer=None):
    return batch(family, [token_ids(family, messages, answer)], [[size(family)]])


def picks(model, method, inputs, generating=False, order=False, **options):
    with prune(model, method, **options) as run, torch.no_grad():
        if generating:
            model.generate(**inputs, **GREEDY)
        else:
            model(**inputs)
    return [record.order if order else record.indices for record in run.report]


def prompts_of(family, model, inputs, **options):
    """Return what is known of the prompts."""
    backbone = adapter_for(model, processor=tokenizer(family.name))
    encoded = backbone.encode(**backbone.image_arguments(inputs))
    return backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"], **options).prompts


def asked(family, model, inputs, **options):
    """Return the words of each prompt as text."""
    words = prompts_of(family, model, inputs, **options).words
    return [said_by(family.name, ids, row) for ids, row in zip(inputs["input_ids"], words, strict=True)]


# ------------------------------------------------------------------------------------------------ the question decides


@pytest.mark.feature("question")
def test_the_question_decides(family, model):
    made = tokenizer(family.name)
    several = [one(family, [user(size(family), question)]) for question in (ONE, TWO, THREE)]
    assert len({inputs["input_ids"].shape for inputs in several}) == 1
    for method in [*WORDS, MMTok(6), *inside(family)]:
        ranked = [picks(model, method, inputs, order=True, processor=made) for inputs in several]
        assert ranked[0] != ranked[1] or ranked[0] != ranked[2], method


@pytest.mark.feature("question")
def test_the_words_are_the_user_s_alone(family, model):
    system = said("system", "You are in the end a tester.")
    earlier = [user(size(family), TWO), said("assistant", ANSWERS[0])]
    for messages in (
        [user(size(family), ONE)],
        [user(ONE, size(family))],
        [system, user(size(family), ONE)],
        [*earlier, user(ONE)],
        [user(ONE.split("red")[0] + "red", size(family), ONE.split("red")[1])],
        [user(size(family), 0, ONE)],
        *([[user(-1, ONE)], [user(ONE, -2)]] if -1 in family.counts else []),
    ):
        sizes = [part["size"] for turn in messages for part in turn["content"] if "size" in part]
        inputs = batch(family, [token_ids(family, messages)], [sizes])
        # The template of Gemma 3 makes the system's text the beginning of the first user's turn.
        merged = plain(system["content"][0]["text"]) if messages[0] is system and family.name == "gemma3" else ""
        assert asked(family, model, inputs) == [merged + plain(ONE)], messages
        ends = prompts_of(family, model, inputs).ends
        assert ends.nonzero().tolist() == [[0, inputs["input_ids"].shape[1] - 1]]


@pytest.mark.feature("question")
def test_a_question_in_front_of_the_image_asks(family, model):
    made = tokenizer(family.name)
    several = [one(family, [user(question, size(family))]) for question in (ONE, TWO, THREE)]
    for method in [*WORDS, MMTok(6)]:
        ranked = [picks(model, method, inputs, order=True, processor=made) for inputs in several]
        assert ranked[0] != ranked[1] or ranked[0] != ranked[2], method
    if not inside(family)[1:]:
        return
    with pytest.raises(ValueError, match="no word of it follows image 0"):
        picks(model, inside(family)[1], several[0], processor=made)


@pytest.mark.feature("question")
def test_padding_and_other_prompts_of_a_batch_do_not_matter(family, model):
    made = tokenizer(family.name)
    conversations = [
        [user(size(family), ONE)],
        [user(size(family), TWO), said("assistant", ANSWERS[0]), user("at the end?")],
    ]
    rows = [token_ids(family, messages) for messages in conversations]
    for method in WORDS:
        alone = [picks(model, method, _alone(family, row, rows), processor=made)[0] for row in range(2)]
        for side in ("left", "right"):
            assert picks(model, method, batch(family, rows, [[size(family)]] * 2, side), processor=made) == alone


def _alone(family, row, rows):
    return family._inputs(torch.tensor([rows[row]]), [[size(family)]] * 2, [row], 0)


# ------------------------------------------------------------------------------------------------ the answer does not


@pytest.mark.feature("labels")
def test_the_answer_does_not_decide(family, model):
    made, messages = tokenizer(family.name), [user(size(family), ONE)]
    prompt, (one_answer, other) = one(family, messages), (one(family, messages, answer) for answer in ANSWERS)
    width = prompt["input_ids"].shape[1]
    assert torch.equal(one_answer["input_ids"][:, :width], prompt["input_ids"])
    labels = one_answer["input_ids"].clone()
    labels[:, :width] = -100
    for method in [*WORDS, *inside(family)]:
        wanted = picks(model, method, prompt, generating=True, processor=made)
        for inputs in (prompt, one_answer, other):
            assert picks(model, method, inputs, processor=made) == wanted, method
        assert picks(model, method, {**one_answer, "labels": labels}, processor=made) == wanted
        # Labels on what the template writes, on what the user says, and on everything: the same turn asks.
        for start in (width - 1, width // 2, 1, 0):
            early = one_answer["input_ids"].clone()
            early[:, :start] = -100
            early[torch.isin(early, torch.tensor([IMAGE, VIDEO]))] = -100
            assert picks(model, method, {**one_answer, "labels": early}, processor=made) == wanted, (method, start)
    # Without a template, labels alone tell where the answer begins.
    for method in WORDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = picks(model, method, prompt)
            assert picks(model, method, {**one_answer, "labels": labels}) == wanted


@pytest.mark.feature("labels")
def test_labels_on_everything_tell_nothing_without_a_template(family, model):
    """As if there were none, with the warning that there is without them."""
    inputs = one(family, [user(size(family), ONE)], ANSWERS[0])
    everywhere = inputs["input_ids"].clone()
    everywhere[torch.isin(everywhere, torch.tensor([IMAGE, VIDEO]))] = -100
    for method in [*WORDS, *inside(family)[:1]]:
        with pytest.warns(UserWarning, match="so all text of the prompt asks|so the last token asks, of the answer"):
            wanted = picks(model, method, inputs, order=True)
        for labels in (everywhere, inputs["input_ids"]):
            with pytest.warns(
                UserWarning, match="so all text of the prompt asks|so the last token asks, of the answer"
            ):
                assert picks(model, method, {**inputs, "labels": labels}, order=True) == wanted, method
    # Labels behind words tell.
    start = inputs["input_ids"].shape[1] - 3
    answer = torch.arange(start + 3)[None] >= start
    backbone = adapter_for(model)
    encoded = backbone.encode(**backbone.image_arguments(inputs))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "[^,]*, so the last token asks")
        tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"], answer=answer)
        assert tokens.prompts.ends.nonzero().tolist() == [[0, start - 1]]


@pytest.mark.feature("labels")
def test_of_several_labelled_turns_the_first_asks(family, model):
    turns = [user(size(family), ONE), said("assistant", ANSWERS[0]), user(TWO)]
    inputs, first = one(family, turns, ANSWERS[1]), one(family, turns[:1])
    start, length = first["input_ids"].shape[1], inputs["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :start] = -100
    assert asked(family, model, inputs, answer=labels != -100) == [plain(ONE)]
    ends = prompts_of(family, model, inputs, answer=labels != -100).ends
    assert ends.nonzero().tolist() == [[0, start - 1]]
    assert asked(family, model, inputs) == [plain(TWO)]
    assert prompts_of(family, model, inputs).ends.nonzero()[0, 1] == length - 1 - _tokens(family, ANSWERS[1], turns)
    made = tokenizer(family.name)
    # A tokenizer may merge the end of the prompt with the beginning of the answer, and then another token asks.
    merged = not torch.equal(inputs["input_ids"][:, :start], first["input_ids"])
    for method in WORDS[: 2 if merged else 3]:
        wanted = picks(model, method, first, processor=made)
        assert picks(model, method, {**inputs, "labels": labels}, processor=made) == wanted


@pytest.mark.feature("labels")
def test_the_loss_inside_is_that_of_the_logits_that_are_left(family, model):
    if not inside(family):
        pytest.skip("tokens cannot be dropped inside")
    made = tokenizer(family.name)
    rows = [
        token_ids(family, [user(size(family), question)], answer)
        for question, answer in zip((ONE, TWO), ANSWERS, strict=True)
    ]
    answers = [_tokens(family, answer, [user(size(family), ONE)]) for answer in ANSWERS]
    for method in inside(family):
        losses = []
        for side in ("left", "right"):
            inputs = batch(family, rows, [[size(family)]] * 2, side)
            real = inputs["attention_mask"] == 1
            behind = real.flip(1).long().cumsum(1).flip(1)
            labels = inputs["input_ids"].masked_fill(~real | (behind > torch.tensor(answers)[:, None]), -100)
            with prune(model, method, processor=made) as run:
                output = model(**inputs, labels=labels)
            assert all(record.after < record.before for record in run.report)
            losses.append(output.loss)
        narrow = []
        for row, ids in enumerate(rows):
            with prune(model, method, processor=made), torch.no_grad():
                logits = model(**_alone(family, row, rows)).logits[0]
            count = answers[row]
            assert len(logits) < len(ids)
            answer = torch.tensor(ids[-count:])
            narrow.append(torch.nn.functional.cross_entropy(logits[-count - 1 : -1], answer, reduction="none"))
        wanted = torch.cat(narrow).mean()
        for loss in losses:
            torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
        losses[0].backward()
        assert bool(model.get_input_embeddings().weight.grad.any())
        model.zero_grad()


def _tokens(family, answer, turns):
    return len(token_ids(family, turns, answer)) - len(token_ids(family, turns))


# ------------------------------------------------------------------------------------------------ who knows it


@pytest.mark.feature("question")
def test_question_mask_names_the_words(family, model):
    inputs = one(family, [user(size(family), ONE + " " + TWO)])
    template = adapter_for(model, processor=tokenizer(family.name))
    encoded = template.encode(**template.image_arguments(inputs))
    words = template.visual_tokens(encoded, inputs["input_ids"]).prompts.words
    few = words & (words.cumsum(1) <= 3)
    for method in WORDS[:2]:
        marked = picks(model, method, {**inputs, "question_mask": few.long()}, order=True)
        for generating in (False, True):
            given = {**inputs, "question_mask": few}
            assert picks(model, method, given, generating, True, processor=tokenizer(family.name)) == marked
        assert marked != picks(model, method, inputs, order=True, processor=tokenizer(family.name))
    with prune(model, WORDS[0]), torch.no_grad():
        text = {"input_ids": torch.tensor([[BOS, 5, 6]]), "attention_mask": torch.ones(1, 3).long()}
        mask = torch.tensor([[False, True, True]])
        text |= family.marked(text["input_ids"])
        assert torch.equal(model(**text, question_mask=mask).logits, model(**text).logits)
        for wrong, why in (
            (few[:, 1:], "question_mask must be .* like input_ids"),
            (few & False, "question_mask marks no text of prompt 0"),
        ):
            with pytest.raises(ValueError, match=why):
                model(**inputs, question_mask=wrong)
        labels = torch.where(few, inputs["input_ids"], -100)
        with pytest.raises(ValueError, match="question_mask marks tokens of the answer of prompt 0"):
            model(**inputs, labels=labels, question_mask=few)


def test_what_a_processor_writes_beside_images_is_known_by_family():
    family = CHATS["llava"]
    ids = token_ids(family, [user("near 1:", size(family), ONE)])
    for beside, said_beside in (((), "near1:"), ((r"near\d+:",), "")):
        template = ChatTemplate.of(tokenizer("llava"), beside)
        words = template.last_turn(ids, [number == IMAGE for number in ids]).words
        assert said_by("llava", torch.tensor(ids), torch.tensor(words)) == said_beside + plain(ONE)
    of = {name: adapter_for(one.build()).beside_images for name, one in CHATS.items()}
    for written, families in (
        ("Frame12:", {"internvl"}),
        ("andherearesomecropstohelpyouseebetter", {"gemma3"}),
        ("<row_1_col_2>", {"idefics3", "smolvlm"}),
        ("Framefrom00:01:", {"idefics3", "smolvlm"}),
        (
            "Youareprovidedthefollowingseriesoftwenty-threeframesfroma0:01:15[H:MM:SS]video.Framefrom00:00:",
            {"idefics3", "smolvlm"},
        ),
        ("<0.5seconds>", {"qwen3_vl"}),
        ("<this>", set()),
    ):
        assert {name for name, marks in of.items() if any(re.fullmatch(mark, written) for mark in marks)} == families


def test_a_model_without_a_template_warns_once_and_asks_with_all_text():
    family, model = CHATS["llava"], tiny.build("clip")
    inputs = one(family, [user(size(family), ONE)])
    with warnings.catch_warnings(record=True) as said_:
        warnings.simplefilter("always")
        with prune(model, WORDS[0]), torch.no_grad():
            for _ in range(2):
                model.generate(**inputs, **GREEDY)
    assert len(said_) == 1
    assert "the chat template of this model is not known, so all text of the prompt asks" in str(said_[0].message)
    assert "processor=processor" in str(said_[0].message) and "question_mask=mask" in str(said_[0].message)
    plain_text = ~torch.isin(inputs["input_ids"], torch.tensor([BOS, IMAGE, PAD]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = picks(model, WORDS[0], {**inputs, "question_mask": plain_text})
        picks(model, WORDS[0], inputs, processor=tokenizer("llava"))
        picks(model, TopK(4, importance="saliency"), inputs)
        picks(model, FastV(24), inputs, generating=True)
    with pytest.warns(UserWarning, match="not known"):
        assert picks(model, WORDS[0], inputs) == wanted
    with pytest.warns(UserWarning, match="the last token asks, of the answer where one stands behind the prompt"):
        picks(model, FastV(24), inputs)
    with pytest.warns(UserWarning, match="a prompt does not follow the chat template of its processor"):
        picks(model, WORDS[0], tiny.prompts((1,)), processor=tokenizer("llava"))
    with pytest.raises(TypeError, match="processor must be a processor or tokenizer, which dict is not"):
        prune(model, WORDS[0], processor={})


def test_the_processor_that_lies_with_the_weights_is_found(tmp_path):
    model = tiny.build("clip")
    model.save_pretrained(tmp_path)
    tokenizer("llava").save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    again.generation_config = model.generation_config
    inputs = one(CHATS["llava"], [user(0, ONE)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = picks(model, WORDS[0], inputs, processor=tokenizer("llava"))
        assert picks(again, WORDS[0], inputs) == wanted
    assert processor_of(model) is None
    remember_processor(model, tokenizer("llava"))
    assert picks(model, WORDS[0], inputs) == wanted


# ------------------------------------------------------------------------------------------------ PaliGemma


@pytest.fixture(scope="module")
def prefix():
    return FAMILIES["paligemma"].build()


def prefix_inputs(text, suffix=()):
    family = FAMILIES["paligemma"]
    inputs = family._inputs(torch.tensor([[*[IMAGE] * 36, BOS, *text, 50, *suffix]]), [[0]], [0], 0)
    inputs["token_type_ids"][:, 36 + 2 + len(text) :] = 1
    return inputs


@pytest.mark.feature("question")
@pytest.mark.parametrize("family", ["paligemma"])
def test_the_prefix_asks_where_there_is_no_chat_template(prefix, family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in [*WORDS, MMTok(6)]:
            first, second = prefix_inputs([5, 6, 7, 8]), prefix_inputs([5, 6, 7, 20])
            assert picks(prefix, method, first, order=True) != picks(prefix, method, second, order=True)
            marked = torch.zeros_like(first["input_ids"], dtype=torch.bool)
            marked[:, 37:42] = True
            if method.name == "mmtok" or method.instruction_tokens == "words":
                assert picks(prefix, method, {**first, "question_mask": marked}) == picks(prefix, method, first)


@pytest.mark.feature("labels")
@pytest.mark.parametrize("family", ["paligemma"])
def test_the_suffix_does_not_decide(prefix, family):
    text = [5, 6, 7, 8]
    for method in WORDS:
        wanted = picks(prefix, method, prefix_inputs(text), generating=True)
        for suffix in ([9, 10, 11], [30, 31, 32]):
            inputs = prefix_inputs(text, suffix)
            assert picks(prefix, method, inputs) == wanted
            labels = torch.where(inputs["token_type_ids"] == 1, inputs["input_ids"], -100)
            assert picks(prefix, method, {**inputs, "labels": labels}) == wanted
            # The prefix is no answer, whatever is labelled.
            assert picks(prefix, method, {**inputs, "labels": inputs["input_ids"]}) == wanted
    inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    ran = []
    with (
        prefix.model.vision_tower.register_forward_hook(lambda *_: ran.append(True)),
        pytest.raises(ValueError, match="token_type_ids must be 0 at images and prompt"),
    ):
        picks(prefix, WORDS[0], inputs)
    assert not ran


# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_the_score_is_the_mean_softmax_of_the_words_over_the_image(layer):
    """Words in front of the image and behind it, in float64 from the formula."""
    family, model = CHATS["llava"], tiny.build("clip", "eager")
    inputs = one(family, [user("is the red", size(family), "star near?")])
    backbone = adapter_for(model, processor=tokenizer("llava"))
    encoded = backbone.encode(inputs["pixel_values"])
    tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"])
    got = tokens.with_instruction(layer, "words").instruction_attention[0].double().numpy()
    words = tokens.prompts.words[0].numpy()
    image = inputs["input_ids"][0].numpy() == IMAGE
    assert words[: image.argmax()].any() and words[image.argmax() :].any()
    states = model.double()(**{**inputs, "pixel_values": inputs["pixel_values"].double()}, output_hidden_states=True)
    x = states.hidden_states[layer][0].numpy()
    block = model.model.language_model.layers[layer]
    norm = block.input_layernorm
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + norm.variance_epsilon) * norm.weight.numpy()
    heads, shared, width = 4, 2, 8
    query = (x @ block.self_attn.q_proj.weight.numpy().T).reshape(len(x), heads, width)
    key = (x @ block.self_attn.k_proj.weight.numpy().T).reshape(len(x), shared, width)
    angle = np.arange(len(x))[:, None] / 1e4 ** (np.arange(0, width, 2) / width)
    turn = np.exp(1j * angle)[:, None]

    def rotated(states):
        turned = (states[..., : width // 2] + 1j * states[..., width // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    query, key = rotated(query), rotated(key)
    wanted = np.zeros(int(image.sum()))
    for word in words.nonzero()[0]:
        for head in range(heads):
            products = key[image, head // (heads // shared)] @ query[word, head] / np.sqrt(width)
            share = np.exp(products - products.max())
            wanted += share / share.sum() / heads / words.sum()
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_prompt_that_ends_in_an_image_has_no_last_token_to_ask():
    model = tiny.build("clip")
    inputs = tiny.prompts((1,))
    cut = {**inputs, **{name: inputs[name][:, :-7] for name in ("input_ids", "attention_mask")}}
    with pytest.raises(Unavailable, match="the prompt of image 0 ends in an image"):
        picks(model, WORDS[2], cut)
