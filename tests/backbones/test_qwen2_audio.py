"""What Qwen2-Audio has of its own: clips, frames joined by twos, features that the model is not told of by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

from idsel_core import IDSelection, TopK, Unavailable, UniformGrid, adapter_for, prune
from idsel_core.methods import FastV
from tests.support import families
from tests.support.family_prompts import ALL, CLOSE, GREEDY, MIXED, by_hand, tokens_of
from tests.support.llava_prompts import Fixed, run

FAMILY = families.FAMILIES["qwen2_audio"]
RATE = 16000


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


@pytest.fixture(scope="module")
def processor():
    """Return the family's own processor, for clips of up to a second instead of 30."""
    words = {"[PAD]": 0, "[UNK]": 2, **{word: 5 + n for n, word in enumerate(("what", "is", "that", "sound", "first"))}}
    words |= {"<|AUDIO|>": families.IMAGE, "<|audio_bos|>": families.START, "<|audio_eos|>": families.END}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", padding_side="left")
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=RATE), fast)


def tone(seconds, start=0.0, end=0.0):
    """Return silence with a tone from `start` to `end`, in seconds."""
    time = np.arange(int(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * 2000 * time) * ((time >= start) & (time < end))).astype(np.float32)


@torch.no_grad()
def test_prune_accepts_the_output_of_the_processor(model, processor):
    prompts = [
        "<|audio_bos|><|AUDIO|><|audio_eos|> what is that sound",
        "first <|audio_bos|><|AUDIO|><|audio_eos|> is <|audio_bos|><|AUDIO|><|audio_eos|> what",
    ]
    clips = [tone(1.0, 0.6, 0.7), tone(0.5), tone(0.81)]
    inputs = dict(processor(text=prompts, audio=clips, sampling_rate=RATE, padding=True, return_tensors="pt"))
    before = [25, 12, 20]
    assert int((inputs["input_ids"] == families.IMAGE).sum()) == sum(before)
    plain = run(model, inputs, **GREEDY)
    with prune(model, ALL):
        same = run(model, inputs, **GREEDY)
    assert torch.equal(same.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))
    with prune(model, IDSelection(budget=5, importance="unified")) as run_:
        model.generate(**inputs, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(count, 5) for count in before]


@torch.no_grad()
def test_grid_columns_are_time_steps(model, processor):
    """A tone from 0.6 to 0.7 seconds is in the tokens of 40 ms from the 15th on."""
    given = [
        dict(processor(text="<|AUDIO|> what", audio=[clip], sampling_rate=RATE, return_tensors="pt"))
        for clip in (tone(1.0, 0.6, 0.7), tone(1.0))
    ]
    backbone = adapter_for(model)
    encoded, silent = (backbone.encode(**backbone.image_arguments(inputs)) for inputs in given)
    assert encoded.grid[0].tolist() == [[0, column] for column in range(25)]
    mean = [inputs["input_features"].mean(1)[0].view(25, 4).mean(1) for inputs in given]
    assert int((mean[0] - mean[1]).argmax()) in (15, 16, 17)
    assert not torch.equal(encoded.features, silent.features)


@torch.no_grad()
def test_saliency_averages_the_attention_that_a_token_s_frames_receive_in_their_clip(model):
    inputs, encoded, tokens = tokens_of(FAMILY, model, MIXED, (0.0,))
    assert tokens.lengths.tolist() == [25, 17, 10]
    eager = FAMILY.build("eager").model.audio_tower
    for clip, (spectrum, steps) in enumerate(
        zip(inputs["input_features"], inputs["feature_attention_mask"].sum(1).tolist(), strict=True)
    ):
        frames = (steps + 1) // 2
        mask = torch.zeros(1, 1, 50, 50).masked_fill(torch.arange(50) >= frames, -torch.inf)
        output = eager(spectrum[None], attention_mask=mask, output_attentions=True)
        for view, layer in ((tokens.saliency, 2), (tokens.at_depth("received_attention", 0.0), 0)):
            received = output.attentions[layer][0, :, :frames, :frames].mean((0, 1))
            wanted = received[: frames // 2 * 2].view(-1, 2).mean(1)
            torch.testing.assert_close(view[clip, : frames // 2], wanted, atol=1e-6, rtol=1e-4)
        states = output.last_hidden_state[0, : frames // 2]
        torch.testing.assert_close(encoded.encoder_features[clip, : frames // 2], states, **CLOSE)
    assert tokens.keys.shape == (3, 25, 4, 8)
    for view in (tokens.saliency, tokens.keys, encoded.encoder_features, tokens.features):
        assert not view[~tokens.mask].any()


@torch.no_grad()
def test_single_token_prompt_is_not_expanded(model):
    layout = ((1,), (2, 0))
    inputs, method = FAMILY.prompts(layout), Fixed(picks=((20,), (3,), (8,)))
    with prune(model, method):
        got = run(model, inputs, **GREEDY)
    for row in range(2):
        logits, chosen, _ = by_hand(FAMILY, model, layout, row, method.picks, 4)
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
        assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen


@torch.no_grad()
def test_each_beam_reads_all_clips_of_its_prompt(model):
    """The same prompts as embeddings: the model itself would give beams of one prompt each other's clips."""
    inputs, options = FAMILY.prompts(((2, 0), (1,))), {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    ids, embeddings = inputs["input_ids"], model.get_input_embeddings()(inputs["input_ids"])
    embeddings[ids == families.IMAGE] = torch.cat(FAMILY.features(model, inputs)["image"])
    wanted = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **options)
    with prune(model, ALL):
        assert torch.equal(model.generate(**inputs, **options)[:, ids.shape[1] :], wanted)


def test_pruning_removes_its_hooks(model):
    def hooks():
        return [(len(m._forward_pre_hooks), len(m._forward_hooks), m.__dict__.get("config")) for m in model.modules()]

    before, inputs = hooks(), FAMILY.prompts(MIXED)
    for method in (UniformGrid(budget=4), FastV(budget=4), TopK(budget=40)):
        with pytest.raises((KeyError, ValueError)), prune(model, method):
            model(**inputs)
            model.generate(**inputs, max_new_tokens=1)
            raise KeyError
        assert hooks() == before


def test_clips_that_do_not_fit_are_refused(model):
    backbone, inputs = adapter_for(model), FAMILY.prompts(((1,),))
    clips = backbone.image_arguments(inputs)
    with pytest.raises(ValueError, match="audio clips need input_features and feature_attention_mask"):
        backbone.encode(input_features=clips["input_features"])
    short = (torch.arange(100) < 2).long()[None]
    with pytest.raises(ValueError, match="audio clip 0 has 2 steps, which is too short for a token"):
        backbone.encode(**{**clips, "feature_attention_mask": short})
    with pytest.raises(Unavailable, match="a smaller image is not available: audio clips are not images"):
        backbone.encode(grid=(1, 5), **clips)
    # As processors once wrote it, for the model to expand.
    ids = torch.tensor([[1, families.IMAGE, 7]])
    with prune(model, ALL):
        with pytest.raises(ValueError, match=r"hold 1 image placeholders .* the 1 image\(s\) fill 25"):
            model(input_ids=ids, **clips)
        with pytest.raises(ValueError, match="give input_features instead of mm_encoder_outputs"):
            model(**inputs, mm_encoder_outputs={"audio": 1})


def test_transformers_without_qwen2_audio_is_refused(model, monkeypatch):
    def forward(self, input_ids=None, **kwargs):
        raise AssertionError

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ValueError, match=r"no feature_attention_mask; install transformers 5\.19 or newer"):
        prune(model, ALL)
