"""Trains the bundled model from the standard library's source: `python -m mlxrt.bundled.train`.

Three stages, run in turn or one by one on different machines over the same work folder:
`prepare` (corpus, tokenizer, token streams), `fit` (the weights), `export` (model folder, card).
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mlxrt.bundled import architecture
from mlxrt.bundled.corpus import SourceFile, corpus_sha256, read_corpus, standard_library
from mlxrt.bundled.location import path
from mlxrt.bundled.tokenizer_training import (
    END_OF_TEXT,
    LINE_END,
    save_tokenizer,
    token_id,
    train_tokenizer,
)
from mlxrt.bundled.tokens import Windows, encode, load_streams, save_streams

STAGES = ("prepare", "fit", "export")
VOCAB_SIZE = 4096


def prepare(work: Path) -> None:
    """Reads the corpus, trains the tokenizer, writes the streams and configuration to `work`."""
    work.mkdir(parents=True, exist_ok=True)
    files = read_corpus(standard_library())
    tokenizer = train_tokenizer((f.text for f in files if not f.is_held_out), VOCAB_SIZE)
    config = architecture.config(token_id(tokenizer, END_OF_TEXT), VOCAB_SIZE)
    architecture.save_config(config, work)
    save_tokenizer(tokenizer, work, config["max_position_embeddings"])
    parts: dict[str, list[SourceFile]] = {
        name: [f for f in files if (f.is_held_out, f.is_test) == key]
        for name, key in {
            "library": (False, False),
            "tests": (False, True),
            "held_out_library": (True, False),
            "held_out_tests": (True, True),
        }.items()
    }
    streams = {name: encode(tokenizer, part) for name, part in parts.items()}
    save_streams(work, streams)
    description = {
        "source": "the standard library of CPython, tests included",
        "python_version": platform.python_version(),
        "sha256": corpus_sha256(files),
        "streams": {
            name: {
                "files": len(part),
                "bytes": sum(len(f.text.encode()) for f in part),
                "tokens": len(streams[name]),
            }
            for name, part in parts.items()
        },
        "held_out_library_files": [f.name for f in parts["held_out_library"]],
    }
    _write(work / "corpus.json", description)


def fit(work: Path, arguments: argparse.Namespace) -> None:
    """Trains on the streams in `work` and writes the weights and the run's report there."""
    from mlxrt.bundled.evaluation import PROMPTS, held_out_losses
    from mlxrt.bundled.export import completions
    from mlxrt.bundled.fitting import Fit, Hyperparameters, report_json, save_weights

    settings = Hyperparameters(
        **{f.name: getattr(arguments, f.name) for f in fields(Hyperparameters) if f.name != "betas"}
    )
    streams = load_streams(work)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    line_end = token_id(tokenizer, LINE_END)
    windows = Windows(
        streams["library"], streams["tests"], line_end, settings.length, settings.library_share
    )
    run = Fit(_read(work / "config.json"), streams, windows, settings)
    report = run.run(arguments.evaluate_every, work / "checkpoint.safetensors")
    model = run.model()
    save_weights(model, work / "model.safetensors")
    sizes = {name: part["bytes"] for name, part in _read(work / "corpus.json")["streams"].items()}
    validation = held_out_losses(model, streams, sizes, settings.length)
    _write(work / "fit.json", {"validation": validation, **report_json(report, settings)})
    for prompt, completion in zip(PROMPTS, completions(model, tokenizer, 96), strict=True):
        print(f"----\n{prompt}⟫{tokenizer.decode(completion.token_ids)}", flush=True)


def main() -> None:
    """Runs the stages that the command line names, all of them by default."""
    arguments = _parser().parse_args()
    stages = arguments.stages or STAGES
    if "prepare" in stages:
        prepare(arguments.work)
    if "fit" in stages:
        fit(arguments.work, arguments)
    if "export" in stages:
        from mlxrt.bundled.export import export

        work = arguments.work
        card = export(work, arguments.output, _read(work / "fit.json"), _read(work / "corpus.json"))
        print(json.dumps({k: card[k] for k in ("validation", "greedy_margins")}, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlxrt.bundled.train", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="default: all three")
    parser.add_argument("--work", type=Path, default=Path("bundled-work"))
    parser.add_argument("--output", type=Path, default=path())
    parser.add_argument("--evaluate-every", type=int, default=1000, help="steps")
    from mlxrt.bundled.fitting import Hyperparameters

    for option in fields(Hyperparameters):
        if option.name != "betas":
            name = "--" + option.name.replace("_", "-")
            parser.add_argument(name, type=type(option.default), default=option.default)
    return parser


def _read(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
