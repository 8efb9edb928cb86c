"""A tiny real encoder and a tiny real model folder, built once per run from random weights."""

import os

# Before anything heavy is imported: a forgotten download fails at once, and one core is enough.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import logging
import math
import shutil
import string

import pytest
from fakes import DRIVING, PRIVACY, SAFE, UNSAFE

from guardrail.rules import Rule

TRAIN_EXTRA = ("torch", "transformers", "sentence_transformers", "datasets", "onnx", "accelerate")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 64
WORDS = "user assistant i you we shouldn 't a the to of it is was in not with and so have do say please"


RULES = (
    DRIVING,
    PRIVACY,
    Rule(id="bread-001", rule="It is kind to share your bread.", domain="kindness"),
    Rule(id="honesty-001", rule="You shouldn't lie to a friend.", domain="honesty"),
)


def vocabulary():
    """Return the word pieces: whole words of the texts above, and every ASCII character by itself."""
    characters = string.ascii_lowercase + string.digits
    words = f"{WORDS} {UNSAFE} {SAFE}".split()
    return list(
        dict.fromkeys(
            [*SPECIAL_TOKENS, *string.punctuation, *characters, *(f"##{c}" for c in characters), *words]
        )
    )


@pytest.fixture(scope="session")
def train_extra():
    """Skip what needs the train extra where it is not installed."""
    for package in TRAIN_EXTRA:
        pytest.importorskip(package)
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(train_extra, tmp_path_factory):
    """Folder of a random BERT of two layers with a real WordPiece tokenizer, in transformers format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "base"
    pieces = {piece: number for number, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab=pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, pieces[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=2 * MAX_TOKENS,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=2 * MAX_TOKENS,
        initializer_range=0.2,  # so that random weights tell texts apart
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_base):
    """A model of all parts whose level head tells UNSAFE from SAFE: do not change it in place."""
    import torch

    from guardrail.trainer.encoder import build_model
    from guardrail.trainer.inputs import as_text
    from guardrail.types import Turn

    torch.manual_seed(1)
    model = build_model(str(tiny_base), max_tokens=MAX_TOKENS).cpu().eval()
    texts = [as_text([Turn("user", text)]) for text in (UNSAFE, SAFE)]
    with torch.no_grad():
        unsafe, safe = model(model.preprocess(texts))["level_hidden"]
        direction = (unsafe - safe) / (unsafe - safe).square().sum()
        model[3].linear.weight.copy_(torch.stack([-direction, direction, direction]))
        model[3].linear.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    return model


@pytest.fixture(scope="session")
def tiny_fp32(tiny_model, tmp_path_factory):
    """`tiny_model` as fp32 ONNX."""
    from guardrail.trainer.export import export_fp32

    return export_fp32(tiny_model, tmp_path_factory.mktemp("onnx") / "fp32.onnx")


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tiny_fp32, tmp_path_factory):
    """A whole model folder, int8, four rules; it flags UNSAFE and not SAFE. Copy it before changing it."""
    from guardrail.artifact import Canary, write_manifest, write_parts
    from guardrail.calibration import Calibration, Platt, RuleCalibration, unsafe_log_odds
    from guardrail.encoder import OnnxEncoder
    from guardrail.rule_index import RuleIndex
    from guardrail.trainer.export import quantize_int8

    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    level = logging.getLogger().level
    quantize_int8(tiny_fp32, folder / "model.onnx")
    logging.getLogger().setLevel(level)  # other tests read logs
    tiny_model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    dimension = tiny_model.get_embedding_dimension()
    encoder = OnnxEncoder(folder, max_tokens=MAX_TOKENS, dimension=dimension)

    def embed(texts):
        return encoder.encode([(encoder.cls_id, *encoder.tokenize(t).ids, encoder.sep_id) for t in texts])

    canaries = embed([f"user: {UNSAFE}", f"user: {SAFE}"])
    unsafe, safe = unsafe_log_odds(canaries.level_logits).tolist()
    # Calibrated so that the two canaries come out at P = 0.8 and 0.2.
    slope = 2 * math.log(4) / (unsafe - safe)
    intercept = -slope * (unsafe + safe) / 2
    calibration = Calibration(
        unsafe=Platt(slope=slope, intercept=intercept),
        rule=RuleCalibration(product=0.2, level=slope, intercept=intercept),
    )
    index = RuleIndex(dimension)
    index.add(embed([rule.text for rule in RULES]).embeddings)
    write_parts(folder, index, RULES, calibration)
    write_manifest(
        folder,
        RULES,
        name="tiny",
        dimension=dimension,
        max_tokens=MAX_TOKENS,
        canary=Canary(unsafe=(UNSAFE,), safe=(SAFE,)),
    )
    return folder


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of `tiny_folder` that a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


# For the files that drive OpenAI's client; imported here only when one of them asks.


@pytest.fixture
def server():
    """A scripted server with OpenAI's API."""
    from openai_server import OpenAIServer

    with OpenAIServer() as found:
        yield found


@pytest.fixture
def bare(server):
    """A client of it without the guard."""
    import openai

    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def client(bare):
    """The same with the guard."""
    from fakes import make_guard

    from guardrail.integrations.openai import guard_client

    with guard_client(bare, guard=make_guard()) as guarded:
        yield guarded
