"""The bundled model: what the package ships, that it reads and writes Python, and its training."""

from __future__ import annotations

import ast
import hashlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from mlxrt.bundled import architecture, card, corpus, evaluation, export, path, tokens
from mlxrt.bundled.fitting import Fit, Hyperparameters
from mlxrt.bundled.tokenizer_training import END_OF_TEXT, token_id, train_tokenizer

SIZE_LIMIT_BYTES = 8_000_000
LOSS_BOUND = 2.8
"""Nats a token on the first 256 tokens of a held-out file, measured 2.54 on CPython 3.11.7's.

A file's start is its hardest part: the card states the mean over whole files in longer windows.
"""


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The model in float32 and mlx-lm's tokenizer, loaded while every connection is refused."""

    def refuse(*_: object) -> None:
        raise AssertionError("loading the bundled model reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        from mlx_lm import load

        model, tokenizer = load(str(path()))
    assert {array.dtype for array in _arrays(model)} == {mx.bfloat16}
    model.set_dtype(mx.float32)
    return model, tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(path() / "tokenizer.json"))


def _arrays(model: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return list(dict(tree_flatten(model.parameters())).values())


def _held_out_source() -> str:
    name = "operator.py"
    assert name in card()["corpus"]["held_out_library_files"]
    return (corpus.standard_library() / name).read_text(encoding="utf-8")


class TestPackage:
    def test_folder_fits_the_package(self) -> None:
        sizes = [file.stat().st_size for file in path().iterdir()]
        assert 7_000_000 < sum(sizes) <= SIZE_LIMIT_BYTES

    def test_files_are_those_the_card_pins(self) -> None:
        pinned = card()["files"]
        assert {f.name for f in path().iterdir()} == {*pinned, "model_card.json"}
        for name, pin in pinned.items():
            content = (path() / name).read_bytes()
            assert len(content) == pin["bytes"], name
            assert hashlib.sha256(content).hexdigest() == pin["sha256"], name

    def test_card_tells_licence_and_origin(self) -> None:
        assert "Python Software Foundation" in card()["licence"]["attribution"]
        assert len(card()["corpus"]["sha256"]) == 64
        assert card()["training"]["seconds"] > 0

    def test_import_brings_no_mlx(self) -> None:
        program = "import sys, mlxrt.bundled as b; b.path(); print('mlx.core' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            Path(__file__).read_text(encoding="utf-8"),
            "def f(x):\r\n\treturn x  \n\n\n\n   # ∀ λ 中文 🐍 \x00\x7f",
            " a  b   c\u00a0d\u2028e",
            "",
        ],
    )
    def test_text_round_trips(self, loaded: tuple[Any, Any], text: str) -> None:
        tokenizer = loaded[1]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text

    def test_source_streams_as_it_is(self, loaded: tuple[Any, Any]) -> None:
        source = _held_out_source()
        streaming = loaded[1].detokenizer
        streaming.reset()
        for token in loaded[1].encode(source):
            streaming.add_token(token)
        streaming.finalize()
        assert streaming.text == source

    def test_both_loaders_give_the_same_ids(
        self, loaded: tuple[Any, Any], tokenizer: Tokenizer
    ) -> None:
        source = _held_out_source()
        assert loaded[1].encode(source) == tokenizer.encode(source).ids

    def test_prompt_may_end_at_a_line_end(self, tokenizer: Tokenizer) -> None:
        head, tail = "class A:\n    def f(self):\n", "        return 1\n"
        assert tokenizer.encode(head).ids + tokenizer.encode(tail).ids == (
            tokenizer.encode(head + tail).ids
        )

    def test_end_of_text_is_the_last_id(
        self, loaded: tuple[Any, Any], tokenizer: Tokenizer
    ) -> None:
        end = token_id(tokenizer, END_OF_TEXT)
        assert end == tokenizer.get_vocab_size() - 1 == loaded[0].args.vocab_size - 1
        assert loaded[1].eos_token_ids == {end}


class TestModel:
    def test_parameter_count_is_the_cards(self, loaded: tuple[Any, Any]) -> None:
        assert sum(array.size for array in _arrays(loaded[0])) == card()["parameters"]

    def test_held_out_loss(self, loaded: tuple[Any, Any], tokenizer: Tokenizer) -> None:
        ids = np.asarray(tokenizer.encode(_held_out_source()).ids[:257], dtype=np.uint16)
        loss = evaluation.stream_loss(loaded[0], ids, 256)
        assert 0.5 < loss < LOSS_BOUND
        shuffled = np.random.default_rng(0).permutation(ids)
        assert evaluation.stream_loss(loaded[0], shuffled, 256) > 2 * loss

    @pytest.mark.parametrize("index", [0, 3])
    def test_greedy_completion_is_the_cards(
        self, loaded: tuple[Any, Any], tokenizer: Tokenizer, index: int
    ) -> None:
        sample = card()["samples"][index]
        ids = tokenizer.encode(sample["prompt"]).ids
        completion = evaluation.greedy(loaded[0], ids, 40)
        assert sample["completion"].startswith(tokenizer.decode(completion.token_ids))
        assert min(completion.margins) >= card()["greedy_margins"]["minimum"]

    def test_greedy_completion_parses(self, loaded: tuple[Any, Any], tokenizer: Tokenizer) -> None:
        prompt = "class Stack:\n    def __init__(self"
        completion = evaluation.greedy(loaded[0], tokenizer.encode(prompt).ids, 60)
        text = prompt + tokenizer.decode(completion.token_ids)
        methods = text.split("\n    def ")
        assert len(methods) >= 3
        (declared,) = ast.parse("\n    def ".join(methods[:-1])).body
        assert isinstance(declared, ast.ClassDef)
        names = [node.name for node in declared.body if isinstance(node, ast.FunctionDef)]
        assert names[0] == "__init__" and len(names) == len(methods) - 2

    def test_margins_are_no_coin_flips(self) -> None:
        margins = card()["greedy_margins"]
        assert margins["choices"] > 1500
        assert margins["share_below_0.01"] < 0.005
        assert margins["median"] > 1.0


class TestCorpus:
    def test_reads_source_and_leaves_out_the_rest(self, tmp_path: Path) -> None:
        contents = {
            "b.py": b"x = 1\n",
            "a/c.py": b"y = 2\n",
            "a/encodings/kept.py": b"z = 3\n",
            "encodings/cp1.py": b"table\n",
            "html/entities.py": b"table\n",
            "lib2to3/tests/data.py": b"odd\n",
            "site-packages/p/q.py": b"foreign\n",
            "a/__pycache__/c.py": b"cached\n",
            "_sysconfigdata_x.py": b"built\n",
            "latin.py": "é".encode("latin-1"),
            "empty.py": b"\n",
        }
        for name, content in contents.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        files = corpus.read_corpus(tmp_path)
        assert [file.name for file in files] == ["a/c.py", "a/encodings/kept.py", "b.py"]
        before = corpus.corpus_sha256(files)
        (tmp_path / "b.py").write_bytes(b"x = 2\n")
        assert corpus.corpus_sha256(corpus.read_corpus(tmp_path)) != before

    def test_an_empty_root_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            corpus.read_corpus(tmp_path)

    def test_held_out_files_are_the_cards(self) -> None:
        for name in card()["corpus"]["held_out_library_files"]:
            file = corpus.SourceFile(name, "")
            assert file.is_held_out and not file.is_test
        assert not corpus.SourceFile("argparse.py", "").is_held_out
        assert corpus.SourceFile("unittest/test/test_case.py", "").is_test


class TestTraining:
    def test_windows_begin_at_a_line(self) -> None:
        line_end = 7
        stream = np.tile(np.asarray([1, 2, 3, line_end], dtype=np.uint16), 50)
        other = np.full(300, 9, dtype=np.uint16)
        windows = tokens.Windows(stream, other, line_end, 16, 0.5)
        drawn = windows.draw(64, np.random.default_rng(1))
        assert drawn.shape == (64, 17)
        from_library = drawn[drawn[:, 1] != 9]
        assert 10 < len(from_library) < 54
        assert (from_library[:, 0] == 1).all()

    def test_learning_rate_ends_at_zero_by_steps_or_by_time(self) -> None:
        settings = Hyperparameters(steps=100, max_seconds=10.0, warmup_steps=10)
        peak = settings.peak_learning_rate
        assert settings.learning_rate(0, 0.0) == pytest.approx(peak / 10)
        assert settings.learning_rate(50, 0.0) == pytest.approx(peak / 2)
        assert settings.learning_rate(100, 1.0) == pytest.approx(0.0, abs=1e-12)
        assert settings.learning_rate(20, 10.0) == pytest.approx(0.0, abs=1e-12)

    def test_a_short_run_learns(self, tmp_path: Path) -> None:
        source = corpus.SourceFile("a.py", Path(__file__).read_text(encoding="utf-8"))
        tokenizer = train_tokenizer(iter([source.text]), 512)
        stream = tokens.encode(tokenizer, [source])
        assert stream[-1] == token_id(tokenizer, END_OF_TEXT) == 511
        tokens.save_streams(tmp_path, dict.fromkeys(tokens.STREAMS, stream))
        streams = tokens.load_streams(tmp_path)
        windows = tokens.Windows(stream, stream, token_id(tokenizer, "Ċ"), 32, 0.5)
        config = architecture.config(511, 512) | {"num_hidden_layers": 1, "hidden_size": 64}
        settings = Hyperparameters(
            steps=12, batch=4, length=32, warmup_steps=2, compute_dtype="float32"
        )
        run = Fit(config, {k: v[:200] for k, v in streams.items()}, windows, settings)
        report = run.run(evaluate_every=4, checkpoint=tmp_path / "weights.safetensors")
        losses = [point["held_out_library"] for point in report.curve]
        assert report.steps == 12 and report.tokens_seen == 12 * 4 * 32
        assert len(losses) == 3 and losses[0] > losses[1] > losses[2]
        saved = mx.load(str(tmp_path / "weights.safetensors"))
        assert set(saved) == set(_names(run.model()))

    def test_export_refuses_an_unfinished_work_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            export.export(tmp_path, tmp_path / "out", {}, {})


def _names(model: Any) -> list[str]:
    from mlx.utils import tree_flatten

    return list(dict(tree_flatten(model.parameters())))
