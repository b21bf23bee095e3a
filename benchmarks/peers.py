"""The peer's side of the training benchmarks: TRL's DPOTrainer and SFTTrainer, on the token ids that this project learns.

The ids are handed over as they are, since TRL's own rendering would learn a line break after each reply too. Everything
from its collator on is TRL's. Rows of one optimizer step stand together, the longest first, which spares it padding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer import utils
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.flops import Flops
from benchmarks.material import Unit, prepare
from benchmarks.meters import Meter, learnt, warm_up
from benchmarks.peer_rows import TokenRow, labelled, labels_of, length_of, rows, runs, sequences
from benchmarks.shapes import backbone_of
from benchmarks.work import Peer, Training
from esupport.errors import UserError
from esupport.training.environment import quiet


class Stamps(TrainerCallback):
    """Stamps the start of training and each step's end, and adds up each step's loss."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.losses: list[float] = []
        self.labels: list[list[Tensor]] = [[]]
        self.parts: list[Tensor] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Training starts."""
        self.meter.stamp()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.meter.stamp()
        self.losses.append(float(torch.stack(self.parts).sum()))
        self.labels.append([])
        self.parts = []


class Watched:
    """A trainer that keeps the targets and the loss of every forward; what the loss is made of stays the trainer's."""

    stamps: ClassVar[Stamps]

    def training_step(self, model: Any, inputs: dict[str, Any], *others: Any, **named: Any) -> Tensor:
        """One forward and backward."""
        self.stamps.labels[-1].append(labels_of(inputs))
        loss: Tensor = super().training_step(model, inputs, *others, **named)  # type: ignore[misc]
        self.stamps.parts.append(loss)
        return loss


class Preference(Watched, DPOTrainer):
    """DPO on rows that are tokenised already; the reference pass is timed."""

    reference: ClassVar[dict[str, Any]] = {}

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *given: Any) -> Dataset:
        meter = self.stamps.meter
        seconds, tokens = meter.now()
        scored: Dataset = super()._precompute_ref_logps(*given)
        later = meter.now()
        self.reference.update(reference_seconds=later[0] - seconds, reference_tokens=later[1] - tokens)
        return scored


class Supervised(Watched, SFTTrainer):
    """SFT, which takes tokenised rows with labels as they are."""


def train(work: Training, peer: Peer) -> dict[str, Any]:
    """Train, and measure, on exactly what :func:`benchmarks.ours.train` trains on."""
    quiet()
    meter = Meter(work.device)
    plain = work.plain()
    backbone = backbone_of(plain, work)
    material = prepare(plain, work, backbone)
    policy = replace(backbone, gradient_checkpointing="none").load(plain["seed"])  # that is the trainer's to set
    weights = {name: value.clone() for name, value in get_peft_model_state_dict(policy).items()}
    adapter, base = policy.peft_config["default"], policy.unload()
    base.set_attn_implementation("sdpa")  # ours is registered with the model: the peer has transformers' own
    base.to(work.device)
    meter.watch(base)
    warm_up(base, meter)
    steps = [[row for number in step for row in rows(material.units[number], peer.layout)] for step in material.steps]
    stamps = Watched.stamps = Stamps(meter)
    if peer.targets_only:
        utils._use_triton = lambda device: True  # asked where the head is, for this alone
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, tuple[Any, Any]] = {"dpo": (Preference, DPOConfig), "sft": (Supervised, SFTConfig)}
        kind, config = kinds[work.task]
        trainer = kind(
            model=base,
            args=config(output_dir=folder, **_settings(plain, work, peer, steps)),
            train_dataset=Dataset.from_list([row for step in steps for row in sorted(step, key=length_of, reverse=True)]),
            processing_class=backbone.tokenizer(),
            peft_config=adapter,
            callbacks=[stamps],
        )
        # the first weights of this project's adapter: both start from one point
        set_peft_model_state_dict(trainer.model, weights)
        before = _held_out(trainer.model, material.held_out_units, work.bf16)
        loaded = meter.held()
        trainer.train()
    peak = meter.peak()
    flops = Flops(trainer.model)
    for row in (row for step in steps[work.warmup :] for row in step):
        for length, targets in sequences(row):
            flops.add(length, length * (length + 1) // 2, targets)
    return {
        **meter.figures(work.warmup),
        **Preference.reference,
        "losses": stamps.losses,
        "gradient_norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
        "learnt": [learnt(run for labels in step for run in runs(labels)) for step in stamps.labels[:-1]],
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "held_out_before": before,
        "held_out_after": _held_out(trainer.model, material.held_out_units, work.bf16),
        **flops.figures(work, meter),
    }


def _settings(plain: dict[str, Any], work: Training, peer: Peer, steps: Sequence[Sequence[TokenRow]]) -> dict[str, Any]:
    """The trainer's configuration: this project's optimizer, the peer's own settings."""
    sizes = {len(step) for step in steps}
    if len(steps) > 1 and (len(sizes) > 1 or min(sizes) % peer.batch):
        raise UserError(f"a step of the peer's has {sorted(sizes)} rows, which batches of {peer.batch} do not fill")
    optimizer = plain["objective"]["optimizer"]
    first, second = optimizer["betas"]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": peer.batch,
        "gradient_accumulation_steps": -(-max(sizes) // peer.batch),
        "max_steps": len(steps),
        "learning_rate": optimizer["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta1": first,
        "adam_beta2": second,
        "weight_decay": optimizer["weight_decay"],
        "max_grad_norm": plain["objective"]["gradient_clip"] or 0,
        "train_sampling_strategy": "sequential",
        "activation_checkpointing": work.checkpointing,
        "max_length": None,
        "seed": plain["seed"],
        "use_cpu": work.device == "cpu",
        "bf16": work.bf16,
        "dataloader_pin_memory": work.device != "cpu",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    if work.task == "dpo":
        loss = plain["objective"]["loss"]
        settings |= {
            "loss_type": [loss["_target_"].rpartition(".")[2]],  # ours have TRL's names
            "beta": loss["beta"],
            "precompute_ref_log_probs": True,
        }
    else:
        settings |= {"padding_free": peer.padding_free}
    return settings | peer.further


@torch.no_grad()
def _held_out(model: Any, units: Sequence[Unit], bf16: bool) -> list[float]:
    """Log-probability a token of each held-out completion, through TRL's own head, one forward each."""
    was_training = model.training
    model.eval()
    found = []
    for response in (response for unit in units for response in unit):
        row = labelled(response.ids, [response])
        given = {name: torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels")}
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            logprobs = model(**given, fused_lm_head=True).log_probs
        found.append(float(logprobs.double().sum()) / len(response.completion))
    model.train(was_training)
    return found
