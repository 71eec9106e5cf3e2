"""Stock set-ups to compare with: Trainer and PEFT used in the three ways that tutorials show."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

ARTICLE, DYNAMIC, GROUPED = "article", "dynamic", "grouped"
WORDS = {
    ARTICLE: "the article's recipe: every text padded to 512, batch 8, Trainer's defaults",
    DYNAMIC: "Trainer, batches padded to their longest text, random order",
    GROUPED: "Trainer with group_by_length, the best stock set-up",
}
BATCH = {ARTICLE: 8, DYNAMIC: 16, GROUPED: 16}


def stock_trainer(kind: str, folder: Path, texts: Dataset, max_length: int, **options: Any) -> Trainer:
    """Return a Trainer for rows of `text` and `label`, with LoRA of rank 8 on query and value.

    `options` are further TrainingArguments, and `model_folder` and `seed`.
    """
    model_folder, seed = options.pop("model_folder"), options.pop("seed", 42)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    padding = "max_length" if kind == ARTICLE else False

    def encode(rows: dict[str, list]) -> dict[str, list]:
        tokens = tokenizer(rows["text"], truncation=True, max_length=max_length, padding=padding)
        return {**tokens, "labels": rows["label"]}

    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
    sampling = {"train_sampling_strategy": "group_by_length"} if kind == GROUPED else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        **{"per_device_train_batch_size": BATCH[kind], **sampling, **options},
    )
    return Trainer(
        get_peft_model(model, lora),
        arguments,
        train_dataset=texts.map(
            encode, batched=True, remove_columns=texts.column_names, new_fingerprint=kind
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
