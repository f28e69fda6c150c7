"""A tiny LLaVA made on the spot answers as its own generation does, and only safe checkpoints are loaded."""

import dataclasses
import json
import shutil
import sys

import pytest
import safetensors.torch
import torch
from test_distill import toy_data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ddanalysis import vision_language
from ddanalysis.report import Run
from ddanalysis.vision_language import QUESTIONS, VisionLanguageModel, answers, ask, load

WORDS = "<unk> <pad> <image> USER: ASSISTANT: yes Yes no No maybe Is it bright ? round Answer with or .".split()
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
ASKED = {"bright": "Is it bright ?", "round": "Is it round ?"}
TOY = toy_data()
DATA = dataclasses.replace(TOY, test_x=TOY.train_x, test_y=TOY.train_y)


def a_processor(words=WORDS, template=TEMPLATE):
    text = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**sides), tokenizer=tokenizer, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def a_model(seed=4):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small),
        text_config=LlamaConfig(vocab_size=len(WORDS), initializer_range=0.5, **small), image_token_index=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    a_model().save_pretrained(path)
    a_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny(folder):
    return load(str(folder))


def pixels(n=5, channels=3):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_answers_are_those_of_generation(tiny):
    found = ask(tiny, pixels(), ASKED)
    assert found["log_odds"].shape == found["mass"].shape == (5, 2) and found["log_odds"].std(0).min() > 0
    for i, image in enumerate(vision_language._pictures(pixels())):  # one at a time, by the library's own generation
        for q, question in enumerate(ASKED.values()):
            text = f"USER: <image> {question} Answer with yes or no. ASSISTANT:"
            inputs = tiny.processor(images=image, text=text, return_tensors="pt")
            out = tiny.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            p = out.logits[0][0].softmax(0)
            yes, no = p[WORDS.index("yes")] + p[WORDS.index("Yes")], p[WORDS.index("no")] + p[WORDS.index("No")]
            assert found["log_odds"][i, q] == pytest.approx(float(yes.log() - no.log()), abs=1e-4)
            assert found["mass"][i, q] == pytest.approx(float(yes + no), abs=1e-5)


def test_batches_grey_images_and_order_change_nothing(tiny):
    found = ask(tiny, pixels(), ASKED)
    alone = ask(tiny, pixels(), ASKED, batch=1)
    assert torch.allclose(found["log_odds"], alone["log_odds"], atol=1e-4)
    turned = ask(tiny, pixels().flip(0), dict(reversed(ASKED.items())), batch=2)
    assert torch.allclose(turned["log_odds"].flip(0, 1), found["log_odds"], atol=1e-4)
    grey = pixels(channels=1)
    assert torch.equal(ask(tiny, grey, ASKED)["mass"], ask(tiny, grey.expand(-1, 3, -1, -1), ASKED)["mass"])
    assert torch.equal(ask(tiny, pixels() + 2, ASKED)["mass"], ask(tiny, torch.ones(5, 3, 8, 8), ASKED)["mass"])


def test_exchanging_yes_and_no_turns_every_answer(tiny):
    turned = VisionLanguageModel(tiny.model, tiny.processor, tiny.no, tiny.yes)
    found, other = ask(tiny, pixels(), ASKED), ask(turned, pixels(), ASKED)
    assert torch.equal(found["log_odds"], -other["log_odds"])
    assert torch.allclose(found["mass"], other["mass"])
    assert sorted(tiny.yes) == [WORDS.index("yes"), WORDS.index("Yes")]
    assert sorted(tiny.no) == [WORDS.index("no"), WORDS.index("No")]


def test_a_model_that_sees_brightness_says_so(tiny):
    """The last layer is set so that yes is what the answers to bright images have more of than those to dark ones."""
    ends = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    states = []
    hook = tiny.model.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][:, -1]))
    ask(tiny, ends, {"bright": "Is it bright ?"})
    hook.remove()
    dark, bright = states[0]
    head = tiny.model.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            for word, sign in (("yes", 1), ("Yes", 1), ("no", -1), ("No", -1)):
                middle = (bright + dark) / 2
                across = (bright - dark) - middle * ((bright - dark) @ middle) / (middle @ middle)
                tiny.model.lm_head.weight[WORDS.index(word)] = sign * across
        levels = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        assert (ask(tiny, levels, {"bright": "Is it bright ?"})["log_odds"][:, 0] > 0).tolist() == [False, True]
    finally:
        tiny.model.lm_head.weight.data.copy_(head)


@pytest.fixture
def run(tmp_path):
    return Run("08_semantics", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


def test_answers_are_kept(run, folder, monkeypatch):
    rows = torch.tensor([7, 2, 30, 4, 11])
    said, asked = answers(run, DATA, str(folder), questions=ASKED, rows=rows, batch=2)
    direct = ask(load(str(folder)), DATA.denormalise(DATA.test_x[rows]), ASKED, batch=2)
    for name in said:
        assert said[name].tolist() == (direct["log_odds"][:, list(ASKED).index(name)] > 0).tolist()
        assert not said[name].all() and said[name].any()
    assert said.index.tolist() == rows.tolist() and asked["attribute"].tolist() == list(ASKED)
    assert asked["mass"].tolist() == pytest.approx(direct["mass"].mean(0).tolist())

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(vision_language, "load", never)
    again, _ = answers(run, DATA, str(folder), questions=ASKED, rows=rows, batch=2)
    assert again.equals(said)
    other = {**ASKED, "round": "Is it a ball ?"}
    for change in ({"questions": other}, {"revision": "v2"}, {"rows": rows[:4]}):
        with pytest.raises(AssertionError, match="asked again"):
            answers(run, DATA, str(folder), **({"questions": ASKED, "rows": rows, "batch": 2} | change))
    (folder / "note.json").write_text("{}")  # what is in the folder counts, not its name
    with pytest.raises(AssertionError, match="asked again"):
        answers(run, DATA, str(folder), questions=ASKED, rows=rows, batch=2)
    (folder / "note.json").unlink()


def test_an_interrupted_study_goes_on(run, folder, monkeypatch):
    rows, whole, told = torch.arange(7), ask(load(str(folder)), DATA.denormalise(DATA.test_x[:7]), ASKED, batch=2), []
    original = vision_language.ask

    def stop(model, images, questions, batch):
        told.append(len(images))
        if len(told) == 3:
            raise KeyboardInterrupt
        return original(model, images, questions, batch)

    monkeypatch.setattr(vision_language, "ask", stop)
    monkeypatch.setattr("ddanalysis.store.Checkpoint.due", lambda self: True)
    with pytest.raises(KeyboardInterrupt):
        answers(run, DATA, str(folder), questions=ASKED, rows=rows, batch=2)
    _, asked = answers(run, DATA, str(folder), questions=ASKED, rows=rows, batch=2)
    assert told == [2, 2, 2, 2, 1]
    assert asked["mass"].tolist() == whole["mass"].mean(0).tolist()


def test_the_default_questions():
    assert len(QUESTIONS) >= 20 and len(set(QUESTIONS.values())) == len(QUESTIONS)
    assert all(question.endswith("?") for question in QUESTIONS.values())


# -------------------------------------------------------------------------------------------------------- refusals


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'ddanalysis\[vision-language\]'"):
        load("anything")


def test_pickled_weights_and_code_are_refused(tmp_path):
    a_processor().save_pretrained(tmp_path)
    model = a_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded: .* safetensors weights"):
        load(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(tmp_path))
    (tmp_path / "own.py").write_text("raise AssertionError('code of a checkpoint was run')")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForImageTextToText": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(tmp_path))


def test_missing_weights_are_not_drawn_at_random(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if "projector" in name)
    kept = {name: t for name, t in weights.items() if name != dropped}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the weights .*projector"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "template", "message"),
    [
        (WORDS, None, "has no chat template"),
        ([w if w not in ("yes", "Yes") else f"{w}ssir" for w in WORDS], TEMPLATE, r"do not tell yes \(\[\]\) from no"),
    ],
)
def test_checkpoints_that_cannot_be_asked(tmp_path, words, template, message):
    a_model().save_pretrained(tmp_path)
    a_processor(words, template).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


def test_refusals(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="a folder or hub name with safetensors weights"):
        load(str(tmp_path / "nothing"))
    for call, message in [
        (lambda: ask(tiny, pixels()[0], ASKED), "pixels have shape"),
        (lambda: ask(tiny, pixels(channels=2), ASKED), "unknown number of channels 2"),
        (lambda: ask(tiny, pixels(), ASKED, batch=0), "batch is 0"),
        (lambda: ask(tiny, pixels(), {}), "no questions were given"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
