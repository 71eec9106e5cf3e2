"""Trainer's own arguments for a run."""

import datasets
import torch
from transformers import TrainingArguments

from peft_core.config import TrainConfig
from peft_core.runs import Run
from peft_core.training.processes import processes
from peft_core.training.schedule import eval_steps, loss_steps, save_steps, total_steps

EVAL_TOKENS, EVAL_TEXTS = 4096, (8, 64)  # tokens of an evaluation batch, roughly; fewest and most texts


def training_arguments(
    run: Run, config: TrainConfig, rows: int, *, curve: datasets.Dataset | None, autocast: bool
) -> TrainingArguments:
    """Return Trainer's arguments for a run on `rows` rows; `curve` has the tokens of the validation rows."""
    steps, gpu = total_steps(config, rows, processes()), torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        max_grad_norm=config.max_grad_norm,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        per_device_eval_batch_size=_eval_batch_size(curve),
        eval_strategy="steps" if curve else "no",
        eval_steps=eval_steps(config, steps),
        save_strategy="steps",
        save_steps=save_steps(steps),
        logging_steps=loss_steps(steps),
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not gpu,
        ddp_broadcast_buffers=False,  # nothing writes into them
        ddp_find_unused_parameters=False,
        bf16=autocast and gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=gpu,
    )


def _eval_batch_size(curve: datasets.Dataset | None) -> int:
    """Return the texts of an evaluation batch; long texts in large batches take more time and memory."""
    fewest, most = EVAL_TEXTS
    if not curve or torch.cuda.is_available():
        return most
    lengths = [len(tokens) for tokens in curve["input_ids"][:]]
    return max(fewest, min(most, EVAL_TOKENS * len(lengths) // sum(lengths)))
