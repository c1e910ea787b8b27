"""Memory of an edit by Stable Diffusion 1.x at full size and 512 pixels, by precision, tiles and offload.

    python benchmarks/edit_memory.py [--device cpu] [--steps 1] [--precisions float32 bf16] [--tiles 0 256]

UNet (860 million numbers), text encoder (123) and autoencoder (84) have random weights, in one file of half precision
(2.1 GB); only memory and time are read here. Each variant is a process of its own that opens the file and edits one
image by sdedit with guidance (two rows of the UNet in a call), decoded plainly. On the CPU a number is the peak of the
process less what it had after the imports; of the opening it includes the pages of the file that were read, which the
system can take back. On a GPU it is the peak of what torch allocated there.

Rows in reports/edit_memory.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_pretrained import build
from record import record
from safetensors.torch import save_file

import mmgen
from mmgen.clip.model import train_tokenizer
from mmgen.ldm.published.single_file import compvis_autoencoder, compvis_unet

SIZE = 512  # pixels


def write_model(folder):
    "One file with the names and shapes of Stable Diffusion 1.x, and a tokenizer."
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    parts = {
        "model.diffusion_model.": lambda: compvis_unet(build("unet", "mmgen").state_dict(), 2),
        "first_stage_model.": lambda: compvis_autoencoder(build("vae", "mmgen").state_dict(), 4),
        "cond_stage_model.transformer.text_model.": lambda: CLIPTextModel(config).state_dict(),
    }
    state = {}
    for prefix, part in parts.items():
        state |= {prefix + name: value.half().contiguous() for name, value in part().items()}
    save_file(state, folder / "sd15.safetensors")
    train_tokenizer(["green hair, smile"], 520).save_pretrained(folder / "tokenizer")


class Peak:
    "The largest memory since it was made, MiB."

    def __init__(self, device):
        self.device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
        else:
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, name="VmHWM"):
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


def measure(folder, device, steps, variant):
    "Opening and one edit in this process, printed as JSON."
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    import diffusers  # noqa: F401  # that `editor` imports, too
    import transformers  # noqa: F401

    before = 0 if device != "cpu" else Peak(device)("VmRSS")
    model = {"model": folder / "sd15.safetensors", "tokenizer": folder / "tokenizer"}
    peak, start = Peak(device), time.process_time()
    editor = mmgen.editor("sdedit", device, decoding="plain", steps=steps, **model, **variant)
    row = {"opening, MiB": peak() - before}
    peak, start = Peak(device), time.process_time()
    result = editor.edit(image, ["smile"], ["green hair, smile"], 0.9)
    row |= {"edit, MiB": peak() - before, "processor seconds": time.process_time() - start}
    assert result.isfinite().all() and result.shape == image.shape
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--tiles", nargs="+", type=int, default=[0, 256], help="sides, pixels; 0: whole images")
    parser.add_argument("--one", help="of a process: folder and variant as JSON")
    a = parser.parse_args()
    if a.one:
        folder, variant = json.loads(a.one)
        return measure(Path(folder), a.device, a.steps, variant)
    variants = [{"precision": kind, "tile": tile} for kind in a.precisions for tile in a.tiles]
    if a.device != "cpu":
        variants += [variant | {"offload": "model"} for variant in variants]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for variant in variants:
            options = ["--device", a.device, "--steps", str(a.steps), "--one", json.dumps([folder, variant])]
            lines = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
            row = {"model": "Stable Diffusion 1.x", "size": SIZE, "steps": a.steps, "offload": "none"} | variant
            row |= json.loads(lines.stdout.splitlines()[-1])
            record("edit_memory", row if a.device == "cpu" else row | {"device": torch.cuda.get_device_name()})


if __name__ == "__main__":
    main()
