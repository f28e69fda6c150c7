"""Attributes of images in words, asked of a vision-language model: yes-or-no questions, through ``transformers``.

Any checkpoint with a chat template that ``AutoModelForImageTextToText`` loads will do (LLaVA 1.5 and what came after).
An answer is what the model would say next, "yes" or "no", read from its logits: no sampling, no text to parse.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ddanalysis import artefacts, checks
from ddanalysis.attributes import varying
from ddanalysis.compute import slices
from ddanalysis.data import ImageData
from ddanalysis.report import Run
from ddanalysis.store import Checkpoint, Tensors

QUESTIONS = {
    "blue background": "Is the background mostly blue?",
    "green background": "Is the background mostly green?",
    "brown background": "Is the background mostly brown or grey?",
    "white background": "Is the background mostly white?",
    "dark background": "Is the background dark?",
    "white object": "Is the main object mostly white?",
    "dark object": "Is the main object mostly black or dark?",
    "red object": "Is the main object mostly red?",
    "blue object": "Is the main object mostly blue?",
    "brown object": "Is the main object mostly brown?",
    "from the side": "Is the main object seen from the side?",
    "from the front": "Is the main object seen from the front?",
    "from behind": "Is the main object seen from behind?",
    "from below": "Is the main object seen from below?",
    "facing left": "Does the main object face to the left?",
    "facing right": "Does the main object face to the right?",
    "close up": "Does the main object fill almost all of the image?",
    "partly hidden": "Is a part of the main object cut off or hidden?",
    "long": "Is the main object long and thin?",
    "round": "Is the main object round?",
    "several": "Are there several objects of the same kind?",
    "sky": "Is there sky in the image?",
    "water": "Is there water in the image?",
    "grass": "Is there grass or are there leaves in the image?",
    "indoors": "Was the image taken indoors?",
}
"""Attribute -> question, for photographs: colour, background, viewpoint, shape and surroundings, not the class."""

INSTRUCTION = "Answer with yes or no."
EXTRA = "vision-language"


@dataclass(frozen=True)
class VisionLanguageModel:
    """A loaded checkpoint, and the tokens that begin a yes and a no."""

    model: Any
    processor: Any
    yes: list[int]
    no: list[int]

    def inputs(self, images: list[Image.Image], question: str) -> Any:
        """What the model reads of each image before it would say yes or no. One question and images of one size: no
        padding.
        """
        text = {"type": "text", "text": f"{question} {INSTRUCTION}"}
        turns = [[{"role": "user", "content": [{"type": "image", "image": image}, text]}] for image in images]
        read = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return read.to(self.model.device, self.model.dtype)


def load(checkpoint: str, revision: str = "main", device: torch.device | str = "cpu") -> VisionLanguageModel:
    """The model in the folder ``checkpoint``, or of that name on the Hugging Face hub, in evaluation mode.

    float32 on a CPU, bfloat16 on a GPU. Weights are read from safetensors files alone, and no code of a checkpoint is
    ever run. ``revision`` is a branch or, for the very same weights tomorrow, a commit; a folder has none. Raises
    ``ImportError`` without ``transformers``, ``ValueError`` for what cannot be loaded so, for a checkpoint that lacks
    weights or a chat template, and for one whose tokens do not tell yes from no.
    """
    transformers, dtype = _transformers(), torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    safe = {"revision": revision, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(checkpoint, **safe)
        model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, **safe, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        needed = "a folder or hub name with safetensors weights of an image-and-text model is needed"
        raise ValueError(f"the checkpoint {checkpoint} ({revision}) cannot be loaded: {needed}: {error}") from error
    if loaded["missing_keys"]:  # which would be drawn at random
        raise ValueError(f"the checkpoint {checkpoint} lacks the weights {sorted(loaded['missing_keys'])[0]}, ...")
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"the checkpoint {checkpoint} has no chat template: one is needed to ask it a question")
    yes, no = (_tokens(processor.tokenizer, word) for word in ("yes", "no"))
    if not yes or not no or set(yes) & set(no):
        raise ValueError(f"the tokens of {checkpoint} do not tell yes ({yes}) from no ({no}): one each is needed")
    return VisionLanguageModel(model.to(device).eval(), processor, yes, no)


@torch.inference_mode()
def ask(asked: VisionLanguageModel, pixels: Tensor, questions: Mapping[str, str], batch: int = 16) -> Tensors:
    """What the model says of images (N, c, h, w) of pixels, clipped to [0, 1], to each of Q questions.

    ``log_odds`` (N, Q) float32, log P(yes) - log P(no), above 0 for a yes; ``mass`` (N, Q), P(yes) + P(no): near 0 the
    model says something else, and its answer means little. On the CPU.
    """
    checks.images("pixels", pixels)
    checks.one_of("number of channels", pixels.shape[1], (1, 3))
    checks.whole("batch", batch)
    if not questions:
        raise ValueError("no questions were given: at least 1 is needed")
    parts = []
    for s in slices(len(pixels), batch):
        images = _pictures(pixels[s])
        parts.append(torch.stack([_next(asked, images, question) for question in questions.values()], 1))
    log_odds, mass = torch.cat(parts).unbind(2)
    return {"log_odds": log_odds, "mass": mass}


def answers(
    run: Run,
    data: ImageData,
    checkpoint: str,
    revision: str = "main",
    questions: Mapping[str, str] = QUESTIONS,
    rows: Tensor | None = None,
    batch: int = 16,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a checkpoint says of the test images ``rows`` (int64; None is all), kept as an artefact.

    Returns the attributes, bool, a row an image (its index is ``rows``) and a column a question that some images are
    answered otherwise than others; and of every question ``attribute, question, yes`` (share) and ``mass`` (mean).
    """
    rows = torch.arange(len(data.test_y)) if rows is None else rows.cpu()
    pixels = data.denormalise(data.test_x[rows.to(data.test_x.device)])
    weights = _folder_fingerprint(Path(checkpoint))
    arguments = {
        "checkpoint": checkpoint, "revision": revision, "weights": weights, "questions": list(questions.items()),
        "instruction": INSTRUCTION, "rows": rows.tolist(), "batch": batch,
    }  # fmt: skip

    def build(progress_checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        return _resumable(
            load(checkpoint, revision, run.device), pixels, questions, batch, progress_checkpoint, progress
        )

    name = f"{data.name}_{hashlib.sha256(f'{checkpoint}@{revision}'.encode()).hexdigest()[:12]}_{len(rows)}"
    kept = artefacts.artefact(run, "vision_language", name, data, "vision_language.ask", 1, arguments, build)
    said = pd.DataFrame((kept["log_odds"] > 0).numpy(), index=rows.numpy(), columns=list(questions))
    asked = {"attribute": list(questions), "question": list(questions.values())}
    return varying(said), pd.DataFrame(asked).assign(yes=said.mean().to_numpy(), mass=kept["mass"].mean(0).numpy())


def _resumable(
    asked: VisionLanguageModel,
    pixels: Tensor,
    questions: Mapping[str, str],
    batch: int,
    checkpoint: Checkpoint | None,
    progress: Callable[[int], object] | None,
) -> Tensors:
    """:func:`ask` batch by batch, going on where it was interrupted."""
    found = (checkpoint.load() if checkpoint else None) or {}
    start = len(found["mass"]) if found else 0
    for s in slices(len(pixels) - start, batch):
        part = ask(asked, pixels[start + s.start : start + s.stop], questions, batch)
        found = {name: torch.cat([found[name], t]) if name in found else t for name, t in part.items()}
        if progress:
            progress(len(part["mass"]))
        if checkpoint and checkpoint.due():
            checkpoint.save(found)
    return found


def _next(asked: VisionLanguageModel, images: list[Image.Image], question: str) -> Tensor:
    """Log-odds of yes and the probability of either (n, 2)."""
    logits = asked.model(**asked.inputs(images, question), logits_to_keep=1).logits[:, -1]
    logits = logits.float().log_softmax(1).cpu()
    yes, no = logits[:, asked.yes].logsumexp(1), logits[:, asked.no].logsumexp(1)
    return torch.stack([yes - no, yes.exp() + no.exp()], 1)


def _pictures(pixels: Tensor) -> list[Image.Image]:
    """RGB images of 8 bits, as image processors take them."""
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return [Image.fromarray(one) for one in whole.permute(0, 2, 3, 1).cpu().numpy()]


def _tokens(tokenizer: Any, word: str) -> list[int]:
    """The tokens that are the whole of a word, however it is capitalised, with a space before it or not."""
    spellings = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    return sorted({ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id})


def _folder_fingerprint(folder: Path) -> str:
    """16 hex digits of a sha256 over the files of a checkpoint in a folder; "" for a name on the hub."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"asking a vision-language model needs transformers: pip install 'ddanalysis[{EXTRA}]'"
        ) from error
