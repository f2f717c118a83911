"""Writes the embedded checkpoint: FP16 weights, the model card, and ONNX graphs that refer to these weights.

`python -m training.assemble --autoencoder DIR --transformer DIR --out CHECKPOINT` reads the output folders of the two
trainings. Without `--autoencoder`, CHECKPOINT keeps its autoencoder, and the stage is added to its training record.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from sd35.bench.quality.judge import BACKGROUNDS
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.onnx_export import export
from training import autoencoder, transformer
from training.model import make_text, make_transformer, save_checkpoint
from training.vocabulary import OBJECTS

LAST_STAGE = list(autoencoder.STAGES)[-1]
_RECORD = (
    "| autoencoder, ",
    "| transformer and text encoders",
)  # the beginnings of the rows of a card's training record


def autoencoder_rows(folder: Path) -> list[str]:
    """Return the record of the autoencoder's stages, from the states that its training saved."""
    rows = []
    for name, stage in autoencoder.STAGES.items():
        state = torch.load(folder / name / "state.pt")
        rows.append(
            f"{_RECORD[0]}{name} | {state['step']} | {stage.seed} | {state['seconds'] / 60:.0f} "
            f"| {state['step'] * autoencoder.PIXELS_PER_STEP / 1e6:.0f} million pixels |"
        )
    return rows


def transformer_row(state: dict[str, Any], stage: str) -> str:
    """Return the record of one stage of the transformer."""
    minutes = round(state["seconds"] / 60)
    return f"{_RECORD[1]}, {stage} | {state['step']} | {transformer.SEED} | {minutes} | {state['images']} images |"


def model_card(record: list[str]) -> str:
    """Return the model card from `card.md`, with its lists and the training record. Evaluation adds its table later."""
    rows = ["| Stage | Steps | Seed | Minutes | Training data |", "| --- | --- | --- | --- | --- |", *record]
    card = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    for mark, text in {
        "objects": ", ".join(OBJECTS),
        "backgrounds": ", ".join(BACKGROUNDS),
        "trained": "\n".join(rows),
    }.items():
        card = card.replace("{" + mark + "}", text)
    return card


def main() -> None:
    """Take the averaged weights of the transformer's training, round them to FP16, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--stage", choices=transformer.STAGES, default="first")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    state = torch.load(options.transformer / "state.pt")
    text, mmdit = make_text(), make_transformer()
    transformer.Networks(text, mmdit).load_state_dict(state["average"])
    if options.autoencoder:
        vae = AutoencoderKL.from_pretrained(options.autoencoder / LAST_STAGE / "vae")
        record = autoencoder_rows(options.autoencoder)
    else:
        vae = AutoencoderKL.from_pretrained(options.out / "vae")
        lines = (options.out / "README.md").read_text(encoding="utf-8").splitlines()
        record = [line for line in lines if line.startswith(_RECORD)]
    record.append(transformer_row(state, options.stage))
    if options.out.exists():
        shutil.rmtree(options.out)
    save_checkpoint(options.out, text, mmdit, vae)
    (options.out / "README.md").write_text(model_card(record), encoding="utf-8")
    for file in options.out.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    export(open_checkpoint(str(options.out)))


if __name__ == "__main__":
    main()
