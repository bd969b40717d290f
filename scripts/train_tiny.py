"""Train `tiny`: the vision tower with a classification head first, then everything on conversations.

    python scripts/train_tiny.py --stage all --minutes 70 --out build/tiny

Stages: `vision` (pictures only), `chat` (starts from --start or <out>/vision.pt), `all` (both). Two CPU cores take
about 70 minutes; a GPU is used where there is one. --shape picks the language model's shape; with --base a checkpoint
lends its tokenizer, processors and vision side, so that stage `chat` alone is enough. A line a minute goes to
<out>/log.txt with the step, the losses and the exact match on the validation split (digits and texts that no other
split has).
"""

import argparse
import itertools
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tinydata
import tinymodel
import tinytok
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tinydata import IGNORE, TARGETS, Encoder, Plan, Sample, draw_samples
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor

EASY = (0.75, 0.2, 0.05, 0.0, 0.0)
ODD = ((112, 224), (224, 112), (168, 168), (90, 120), (130, 90), (200, 150))  # other sizes than 112 x 112
MIXED = (0.38, 0.22, 0.04, 0.14, 0.22)
WORDY = (0.42, 0.12, 0.46)  # digits stand in the other layouts too; words are learned last


class Trainer:
    """The model with its head, position grid, optimiser and log."""

    def __init__(self, out: Path, seed: int, rank: int, world: int) -> None:
        self.out, self.seed, self.rank, self.world = out, seed, rank, world
        config = AutoConfig.from_pretrained(out / "side")
        self.processor = AutoProcessor.from_pretrained(out / "side")
        self.encoder = Encoder(self.processor.tokenizer)
        self.model = tinymodel.build(config, seed)
        self.model.set_attn_implementation("eager")  # twice as fast as SDPA on 4 to 64 positions on a CPU
        self.grid = tinymodel.PositionGrid(config.vision_config.hidden_size)
        self.head = nn.Sequential(
            nn.LayerNorm(4 * config.text_config.hidden_size),
            nn.Linear(4 * config.text_config.hidden_size, tinydata.WIDTH),
        )
        self.parts = nn.ModuleDict({"model": self.model, "grid": self.grid, "head": self.head})
        self.placeholders = (config.image_token_id, config.video_token_id)
        self.began = time.time()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.parts.to(self.device)

    def log(self, line: str) -> None:
        """Append a line to the log file and print it."""
        if self.rank:
            return
        line = f"{(time.time() - self.began) / 60:6.1f} min  {line}"
        print(line, flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, name: str) -> None:
        """Write all parts (float32) to <out>/<name>.pt."""
        if self.rank:
            return
        temporary = self.out / f"{name}.partial"
        torch.save(self.parts.state_dict(), temporary)
        temporary.rename(self.out / f"{name}.pt")

    def tokens(self, samples: list[Sample], mode: str) -> Tensor:
        """Visual tokens [frames, tokens, width] of equal pictures."""
        pictures = tinydata.pixels([frame for s in samples for frame in s.frames])
        return tinymodel.vision(self.model, self.grid, pictures.to(self.device), mode)

    def head_loss(self, tokens: Tensor, samples: list[Sample], marks: dict[str, float] | None = None) -> Tensor:
        """The warm-up head's loss on square pictures; `marks` takes the accuracies."""
        if tokens.shape[1] == 16:
            tokens = tinymodel.blocks(tokens, 4, 4).mean(dim=2)
        out, wanted = self.head(tokens.float().flatten(1)), tinydata.targets(samples)
        total = torch.zeros((), device=self.device)
        for key, (start, end) in TARGETS.items():
            part, want = out[:, start:end], wanted[key].to(self.device)
            if key == "there":
                total = total + 2 * F.binary_cross_entropy_with_logits(part, want)
            elif key == "xy":
                known = want[:, 0] >= 0
                total = total + 4 * (part - want)[known].pow(2).mean() if known.any() else total
            elif (want != IGNORE).any():
                weight = {"name": 2.0, "count": 0.3}.get(key, 1.0 if "name" in key or key == "hue" else 0.5)
                total = total + weight * F.cross_entropy(part, want) * (want != IGNORE).float().mean().clamp(min=0.2)
                if marks is not None:
                    marks[key] = (part.argmax(1) == want)[want != IGNORE].float().mean().item()
                    if key == "name":
                        digit = (want >= 0) & (want < 10)
                        marks["digit"] = (part.argmax(1) == want)[digit].float().mean().item()
        return total

    def chat_loss(self, samples: list[Sample], mode: str) -> tuple[Tensor, Tensor]:
        """The answers' cross-entropy and the head's loss on one batch."""
        tokens = self.tokens(samples, mode)
        ids, labels = self.encoder.stack([self.encoder.row(s, tokens.shape[1]) for s in samples])
        flat = tokens.flatten(0, 1)
        loss = tinymodel.answer_loss(self.model, ids.to(self.device), labels.to(self.device), flat, self.placeholders)
        return loss, self.head_loss(tokens, samples)

    def sliced_loss(self, samples: list[Sample], mode: str) -> Tensor:
        """The answers' cross-entropy on single pictures of another size, cut up by the real processor."""
        parts, visual = tinydata.pieces(self.processor, samples, mode)
        tokens = torch.cat(
            [tinymodel.vision(self.model, self.grid, part.to(self.device), mode) for part in parts], dim=1
        )
        ids, labels = self.encoder.stack([self.encoder.row(s, 0, visual) for s in samples])
        return tinymodel.answer_loss(
            self.model, ids.to(self.device), labels.to(self.device), tokens.flatten(0, 1), self.placeholders
        )

    def text_loss(self, rng: random.Random, rows: int) -> Tensor:
        """Cross-entropy of plain texts and text chats."""
        ids, labels = self.encoder.stack([self.encoder.text_row(rng) for _ in range(rows)])
        return tinymodel.answer_loss(self.model, ids.to(self.device), labels.to(self.device), None, self.placeholders)

    @torch.no_grad()
    def exact_match(self, samples: list[Sample], mode: str) -> dict[str, tuple[int, int]]:
        """Right and asked first-turn answers by task: all tokens' argmax right is what greedy decoding would say."""
        score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for start in range(0, len(samples), 64):
            part = samples[start : start + 64]
            with torch.autocast(self.device.type, torch.bfloat16):
                tokens = self.tokens(part, mode)
                ids, labels = self.encoder.stack([self.encoder.row(s, tokens.shape[1]) for s in part])
                right = tinymodel.answers_right(
                    self.model, ids.to(self.device), labels.to(self.device), tokens.flatten(0, 1), self.placeholders
                )
            for sample, ok in zip(part, right.tolist(), strict=True):
                asked = sample.turns[0]
                for key in (asked.task, "zh" if asked.language == "zh" else "en", "all"):
                    score[key][0] += ok
                    score[key][1] += 1
        return {key: (ok, n) for key, (ok, n) in sorted(score.items())}


class Optimiser:
    """Muon for the language model's matrices, AdamW for the rest (no decay on norms, biases and embeddings).

    Muon's step is scaled to AdamW's, so both share one learning rate; the vision side's is `vision_factor` of it.
    """

    def __init__(self, trainer: Trainer, vision_factor: float) -> None:
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        matrices = []
        for name, parameter in trainer.parts.named_parameters():
            if "language_model.layers" in name and parameter.ndim == 2 and min(parameter.shape) > 16:
                matrices.append(parameter)
                continue
            decay = 0.03 if parameter.ndim == 2 and "embed" not in name else 0.0
            groups[decay, 1.0 if "language_model" in name else vision_factor].append(parameter)
        rest = [{"params": p, "weight_decay": d, "factor": f} for (d, f), p in groups.items()]
        muon = torch.optim.Muon(
            [{"params": matrices, "factor": 1.0}], lr=1e-3, weight_decay=0.03, adjust_lr_fn="match_rms_adamw"
        )
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.95)), muon]

    def set_rate(self, peak: float, done: float, warm: float = 0.04) -> None:
        """Linear warm-up, then a cosine to 3 % of the peak; `done` runs from 0 to 1."""
        rate = done / warm if done < warm else 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        for group in [g for part in self.parts for g in part.param_groups]:
            group["lr"] = peak * rate * group["factor"]

    def step(self) -> None:
        """Update, then forget the gradients."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)


def clock(trainer: Trainer, minutes: float) -> Iterator[tuple[int, float]]:
    """Step numbers and the part of the time that is gone (by the first worker's clock), until it is."""
    began = time.time()
    for step in itertools.count():
        gone = torch.tensor([(time.time() - began) / (minutes * 60)])
        if trainer.world > 1:
            dist.broadcast(gone, 0)
        done = gone.item()
        if done >= 1:
            return
        yield step, done


def step_with(trainer: Trainer, optimizer: Optimiser, loss: Tensor) -> None:
    """Backward, mean of the gradients over the workers, clip, step."""
    loss.backward()
    if trainer.world > 1:
        gradients = [p.grad for p in trainer.parts.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(
            gradients, flat.div_(trainer.world).split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))
    nn.utils.clip_grad_norm_(trainer.parts.parameters(), 1.0)
    optimizer.step()


def train_vision(trainer: Trainer, minutes: float, peak: float, batch: int) -> None:
    """Warm the vision tower and the mergers up on pictures of one or two things, mostly in 16x mode."""
    plan, optimizer = Plan(batch, 0, EASY), Optimiser(trainer, 1.0)
    draw, rng = random.Random(1000 * trainer.seed + trainer.rank), random.Random(trainer.seed)
    marks: dict[str, float] = {}
    last, seen = time.time(), 0
    for step, done in clock(trainer, minutes):
        optimizer.set_rate(peak, done)
        samples = draw_samples("train", plan, draw)
        with torch.autocast(trainer.device.type, torch.bfloat16):
            tokens = trainer.tokens(samples, "4x" if rng.random() < 0.25 else "16x")
        loss = trainer.head_loss(tokens, samples, marks)
        step_with(trainer, optimizer, loss)
        seen += len(samples) * trainer.world
        if time.time() - last > 30:
            last = time.time()
            trainer.log(
                f"vision step {step} pictures {seen} loss {loss.item():.3f} "
                + " ".join(f"{k} {v:.2f}" for k, v in marks.items())
            )
            trainer.save("vision")
    trainer.save("vision")
    trainer.log("vision, validation digits: " + validation_head(trainer))


@torch.no_grad()
def validation_head(trainer: Trainer) -> str:
    """The head's accuracies on 600 pictures with unseen digits."""
    samples = draw_samples("validation", Plan(600, 0, (1.0, 0, 0, 0, 0)), random.Random(5))
    marks: dict[str, float] = {}
    with torch.autocast(trainer.device.type, torch.bfloat16):
        tokens = trainer.tokens(samples, "16x")
    trainer.head_loss(tokens, samples, marks)
    return " ".join(f"{k} {v:.3f}" for k, v in marks.items())


def chat_step(trainer: Trainer, step: int, batch: int, draw: random.Random, mode: str) -> dict[str, Tensor]:
    """The losses of one batch: by turns two questions, one question, four questions, text, another size."""
    if step % 6 == 5:
        return {"text": trainer.text_loss(draw, batch // 2)}
    if step % 12 == 10:
        plan = Plan(batch // 4, 2, (0.7, 0.3, 0, 0, 0), sizes=ODD)
        return {"sliced": trainer.sliced_loss(draw_samples("train", plan, draw), mode)}
    turns = (2, 1, 2, 4, 1)[step % 6 % 5]
    answers, head = trainer.chat_loss(draw_samples("train", Plan(batch, turns, MIXED, 0.25, WORDY), draw), mode)
    return {"answers": answers, "head": head}


def train_chat(trainer: Trainer, minutes: float, peak: float, batch: int, vision_factor: float) -> None:
    """Train everything on conversations: pictures (one to four turns), two pictures, clips, other sizes, text."""
    optimizer, rng = Optimiser(trainer, vision_factor), random.Random(trainer.seed + 2)
    draw = random.Random(1000 * trainer.seed + 500 + trainer.rank)
    check = draw_samples("validation", Plan(384, 1, MIXED, chinese=0.25), random.Random(6))
    last = saved = time.time()
    marks: dict[str, float] = {}
    for step, done in clock(trainer, minutes):
        optimizer.set_rate(peak, done)
        with torch.autocast(trainer.device.type, torch.bfloat16):
            losses = chat_step(trainer, step, batch, draw, "4x" if rng.random() < 0.15 else "16x")
        step_with(trainer, optimizer, sum((0.3 if key == "head" else 1.0) * loss for key, loss in losses.items()))
        for key, loss in losses.items():
            marks[key] = 0.9 * marks.get(key, loss.item()) + 0.1 * loss.item()
        if time.time() - last > 60 or step in (20, 100):
            last = time.time()
            score = {}
            if last - saved > 240 and not trainer.rank:
                score, saved = trainer.exact_match(check, "16x"), last
                trainer.save("chat")
            trainer.log(
                f"chat step {step} " + " ".join(f"{k} {v:.3f}" for k, v in marks.items()) + " | " + shown(score)
            )
    trainer.save("chat")
    for mode in ("16x", "4x"):
        trainer.log(f"chat, end, {mode}: " + shown(trainer.exact_match(check, mode)))


def shown(score: dict[str, tuple[int, int]]) -> str:
    """A score in a line."""
    return " ".join(f"{task} {ok}/{asked}" for task, (ok, asked) in score.items())


def run(rank: int, options: argparse.Namespace) -> None:
    """One worker: a whole replica on one core, gradients averaged over the workers after every batch."""
    world = max(1, options.workers)
    if world > 1:
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):  # else the two may share a core when other jobs run
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))]})
        meeting = f"file://{(options.out / f'meeting-{os.getppid()}').resolve()}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    trainer = Trainer(options.out, options.seed, rank, world)
    if options.base:
        other = tinymodel.take_vision(trainer.model, trainer.grid, options.base)
        trainer.log(f"vision side of {options.base}, but for " + (", ".join(other) or "nothing"))
    if options.start:
        trainer.parts.load_state_dict(torch.load(options.start, map_location=trainer.device))
    share = {"vision": 1.0, "chat": 0.0, "all": 0.3}[options.stage]
    if share:
        train_vision(trainer, options.minutes * share, options.rate, options.batch)
    if share < 1:
        train_chat(trainer, options.minutes * (1 - share), options.rate, options.batch, options.vision_factor)


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("vision", "chat", "all"), default="all")
    parser.add_argument(
        "--minutes", type=float, default=70, help="for all stages together; the vision stage gets 30 %% of it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", choices=tuple(tinytok.SHAPES), default="tiny", help="where <out>/side is made anew")
    parser.add_argument("--base", type=Path, default=None, help="checkpoint to take tokenizer and vision side from")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--start", type=Path, default=None, help="weights to go on from (vision.pt or chat.pt)")
    parser.add_argument("--batch", type=int, default=48, help="samples a worker and step")
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument(
        "--vision-factor", type=float, default=0.5, help="the vision side's learning rate in stage chat"
    )
    parser.add_argument("--workers", type=int, default=0 if torch.cuda.is_available() else os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "side" / "tokenizer.json").exists():
        tinytok.write_side_files(options.out / "side", shape=options.shape, base=options.base)
    if options.workers > 1:
        torch.multiprocessing.start_processes(run, (options,), nprocs=options.workers, start_method="fork")
    else:
        run(0, options)


if __name__ == "__main__":
    main()
