"""Script blocks that train, evaluate and save."""

from collections.abc import Iterable, Sequence

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError
from peft_core.export.script.facts import ModelFacts
from peft_core.export.script.source import Argument, call, literal, own_source
from peft_core.methods.registry import HEAD_NAMES, METHODS
from peft_core.problem_types import LOWER_IS_BETTER, MULTI, REGRESSION, SINGLE, headline
from peft_core.runs.kept_step import metric_for_best
from peft_core.training.schedule import START_BATCHES, eval_steps, loss_steps

EVAL_BATCH = 16  # larger batches of long texts are not faster and take more memory
_BFLOAT16 = "bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported()"
_METRICS = {
    SINGLE: """def metrics(logits, labels):
    predicted = logits.argmax(-1)
    return {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "weighted_f1": f1_score(labels, predicted, average="weighted"),
        "mcc": matthews_corrcoef(labels, predicted),
    }""",
    MULTI: """def metrics(logits, labels):
    predicted = (logits >= 0).astype(int)  # a probability of one half or more
    return {
        "micro_f1": f1_score(labels, predicted, average="micro", zero_division=0),
        # a label that is neither true nor predicted in any row does not count
        "macro_f1": f1_score(labels, predicted, average="macro", zero_division=np.nan),
        "subset_accuracy": accuracy_score(labels, predicted),
    }""",
    REGRESSION: """def metrics(logits, labels):
    predicted = logits[:, 0].astype(float)
    return {
        "spearman": spearmanr(predicted, labels).statistic,
        "pearson": pearsonr(predicted, labels).statistic,
        "mae": mean_absolute_error(labels, predicted),
        "rmse": root_mean_squared_error(labels, predicted),
    }""",
}
_LOADER = """    def get_train_dataloader(self):
        lengths = [len(tokens) for tokens in train["input_ids"]]
        batches = TokenBatches(lengths, self.args.train_batch_size, SEED)
        loader = DataLoader(train, batch_sampler=batches, collate_fn=DataCollatorWithPadding(tokenizer))
        return self.accelerator.prepare(loader)"""
_UPDATE_RANKS = '''class UpdateRanks(TrainerCallback):
    """AdaLoRA reads the gradients after each step and reallocates ranks between the matrices."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.base_model.update_and_allocate(state.global_step + 1)'''
_EVA = f"""# EVA initializes LoRA from the activations of the first batches.
batches = islice(trainer.get_train_dataloader(), {START_BATCHES})
texts = [{{name: value for name, value in batch.items() if name != "labels"}} for batch in batches]
initialize_lora_eva_weights(model.eval(), texts)"""
_LORAPLUS = """optimizer_class, optimizer_arguments = Trainer.get_optimizer_cls_and_kwargs(arguments)
optimizer = create_loraplus_optimizer(
    model,
    optimizer_class,
    loraplus_lr_ratio={ratio},
    loraplus_weight_decay={decay},
    **optimizer_arguments,
)"""
_STANDARDIZED = """# The model learns (number - MEAN) / STD: a new head would not reach thousands.
numbers = np.array(train["labels"], dtype=float)
MEAN, STD = float(numbers.mean()), float(numbers.std()) or 1.0


def loss(outputs, labels, num_items_in_batch=None):
    standardized = ((labels.view(-1).double() - MEAN) / STD).float()
    total = mse_loss(outputs["logits"].float().view(-1), standardized, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def output_layer(model):
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.out_features == 1
        and any(part.endswith({heads}) for part in name.split("."))
        and "original_module" not in name
    ]
    return layers[-1]"""
_STANDARDIZE_HEAD = """# The head predicts numbers already: rescale it to the standardized numbers.
with torch.no_grad():
    output_layer(model).weight.div_(STD)
    output_layer(model).bias.sub_(MEAN).div_(STD)"""
_RESCALE_HEAD = """# From here on the output layer predicts numbers in their own unit.
with torch.no_grad():
    output_layer(model).weight.mul_(STD)
    output_layer(model).bias.mul_(STD).add_(MEAN)"""
_WEIGHTS = {
    SINGLE: """# A rare label's errors count as much as a frequent one's.
counts = np.bincount(train["labels"], minlength=len(LABELS))
ratios = counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1))
weights = torch.tensor(ratios, dtype=torch.float32)""",
    MULTI: """# The few texts with a label count as much as the many without it.
texts = np.array(train["labels"]).sum(0)
ratios = np.where(texts > 0, (len(train) - texts) / np.maximum(texts, 1), 1)
weights = torch.tensor(ratios, dtype=torch.float32)""",
}
_STOP_AT_KEPT_STEP = '''class StopAtKeptStep(TrainerCallback):
    """The run planned {steps:,} steps and kept the weights of step {kept:,}: training ends there."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == {kept}:
            control.should_training_stop = True'''


def metrics_block(facts: ModelFacts) -> str:
    """Return the function `metrics(logits, labels)` of the problem type."""
    return _METRICS[facts.problem_type]


def loss_block(config: TrainConfig, facts: ModelFacts) -> str:
    """Return the function `loss` and its constants; empty if the model's own loss is used."""
    if facts.problem_type == REGRESSION:
        heads = f"({', '.join(map(literal, HEAD_NAMES))})"
        blocks = [_STANDARDIZED.format(heads=heads)] + [f"\n\n{_STANDARDIZE_HEAD}"] * (
            not facts.head_is_fresh
        )
        return "".join(blocks)
    if not _has_custom_loss(config, facts):
        return ""
    weights = [] if config.class_weight == "none" else [f"{_WEIGHTS[facts.problem_type]}\n\n"]
    return "\n".join([*weights, _loss_function(config, facts.problem_type)])


def _has_custom_loss(config: TrainConfig, facts: ModelFacts) -> bool:
    """Whether `loss` replaces the model's own loss."""
    weighted = config.class_weight != "none" or config.label_smoothing_factor > 0
    return facts.problem_type == REGRESSION or weighted


def _loss_function(config: TrainConfig, problem_type: str) -> str:
    """Return `loss` with class weights, label smoothing or both."""
    smoothing, multi = config.label_smoothing_factor, problem_type == MULTI
    weighted = config.class_weight != "none"
    lines = [
        "def loss(outputs, labels, num_items_in_batch=None):",
        '    logits = outputs["logits"].float()',
    ]
    if multi and smoothing:
        lines.append(f"    labels = labels * {literal(1 - smoothing)} + {literal(smoothing / 2)}  # smoothed")
    options = [f"{'pos_weight' if multi else 'weight'}=weights.to(logits.device)"] * weighted
    options += [f"label_smoothing={literal(smoothing)}"] * (smoothing > 0 and not multi)
    function = "binary_cross_entropy_with_logits" if multi else "cross_entropy"
    arguments = ", ".join(["logits", "labels", *options, 'reduction="sum"'])
    lines.append(f"    total = {function}({arguments})")
    lines.append("    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)")
    return "\n".join(lines)


def trainer_block(config: TrainConfig, facts: ModelFacts, *, evaluate: bool) -> str:
    """Return lines that define a `trainer` with the batches of the run.

    `evaluate` decides whether it is evaluated on validation rows during training.
    """
    assert facts.steps is not None  # known for every trained run
    evaluation = ['eval_strategy="steps"', f"eval_steps={eval_steps(config, facts.steps)}"]
    arguments = [
        'output_dir=str(OUTPUT / "checkpoints")',
        *_settings_arguments(config),
        f"per_device_eval_batch_size={EVAL_BATCH}",
        *(evaluation if evaluate else []),
        'save_strategy="no"',
        f"logging_steps={loss_steps(facts.steps)}",
        *_device_arguments(config),
    ]
    compute_metrics = "compute_metrics=lambda outputs: metrics(outputs.predictions, outputs.label_ids)"
    keywords = ["eval_dataset=validation"] * evaluate
    keywords += [compute_metrics] * (evaluate and facts.problem_type != REGRESSION)
    callbacks = _callbacks(config, facts)
    classes = [_batches_source(), _trainer_source(), *callbacks.values()]
    keywords += _callbacks_keyword(callbacks)
    trainer = _trainer_lines(config, facts, "RunTrainer", arguments, keywords)
    return "\n\n\n".join([*classes, trainer])


def short_trainer_block(config: TrainConfig, facts: ModelFacts) -> str:
    """Return the same with the stock Trainer, whose order of rows differs from the run's."""
    arguments = [
        'output_dir="checkpoints"',
        *_settings_arguments(config),
        ('train_sampling_strategy="group_by_length"', "texts of similar length together"),
        *_evaluation_arguments(config),
        *best_step_arguments(config, facts),
        *_device_arguments(config),
    ]
    keywords = ["eval_dataset=validation"]
    if measures_for_best_step(config, facts):
        keywords.append("compute_metrics=lambda outputs: metrics(outputs.predictions, outputs.label_ids)")
    callbacks = _callbacks(config, facts)
    if config.early_stopping_patience and best_step_arguments(config, facts):
        callbacks[_early_stopping(config)] = ""
    keywords += _callbacks_keyword(callbacks)
    trainer = _trainer_lines(config, facts, "Trainer", arguments, keywords)
    if config.load_best_model_at_end and not best_step_arguments(config, facts):
        trainer = (
            f"# Trainer cannot reload an earlier step of this method, so the last step is kept.\n{trainer}"
        )
    return "\n\n\n".join([*filter(None, callbacks.values()), trainer])


def best_step_arguments(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    """Return Trainer's arguments that load the best step.

    Empty if the stock Trainer cannot reload the adapter: with virtual tokens (peft#2256), and with AdaLoRA,
    whose ranks change during training.
    """
    cannot_reload = config.method == "adalora" or "num_virtual_tokens" in METHODS[config.method].settings
    if not config.load_best_model_at_end or cannot_reload:
        return []
    metric = _metric_for_best(config, facts)
    return [
        "load_best_model_at_end=True",
        f"metric_for_best_model={literal(metric)}",
        f"greater_is_better={metric not in LOWER_IS_BETTER}",
    ]


def measures_for_best_step(config: TrainConfig, facts: ModelFacts) -> bool:
    """Whether Trainer needs `metrics` to choose the best step."""
    return bool(best_step_arguments(config, facts)) and _metric_for_best(config, facts) != "loss"


def _metric_for_best(config: TrainConfig, facts: ModelFacts) -> str:
    """Return the metric for the best step; the loss for errors, since training standardizes the numbers."""
    try:
        metric = metric_for_best(config, facts.problem_type)
    except ConfigError:  # the metric is of another problem type than the assumed one
        metric = headline(facts.problem_type)
    return "loss" if metric in LOWER_IS_BETTER else metric


def _evaluation_arguments(config: TrainConfig) -> list[Argument]:
    """Return Trainer's arguments for the steps at which it evaluates and saves."""
    if config.eval_steps is None:
        return ['eval_strategy="epoch"', 'save_strategy="epoch"']
    steps = [f"{kind}_steps={config.eval_steps}" for kind in ("eval", "save")]
    return ['eval_strategy="steps"', 'save_strategy="steps"', *steps]


def _early_stopping(config: TrainConfig) -> str:
    arguments = [f"early_stopping_patience={config.early_stopping_patience}"]
    if config.early_stopping_threshold:
        arguments.append(f"early_stopping_threshold={literal(config.early_stopping_threshold)}")
    return f"EarlyStoppingCallback({', '.join(arguments)})"


def _callbacks(config: TrainConfig, facts: ModelFacts) -> dict[str, str]:
    """Return the callbacks of a trainer: calls mapped to the source of their classes."""
    callbacks = {"UpdateRanks()": _UPDATE_RANKS} if config.method == "adalora" else {}
    if facts.steps is not None and facts.kept_step is not None and facts.kept_step < facts.steps:
        source = _STOP_AT_KEPT_STEP.format(steps=facts.steps, kept=facts.kept_step)
        callbacks["StopAtKeptStep()"] = source
    return callbacks


def _callbacks_keyword(callbacks: Iterable[str]) -> list[str]:
    """Return Trainer's keyword argument for these callbacks; empty without callbacks."""
    return [f"callbacks=[{', '.join(callbacks)}]"] if callbacks else []


def _batches_source() -> str:
    """Return this project's source of the batch sampler."""
    module = "training/batches.py"
    constants = "\n".join(own_source(module, name) for name in ("GROUP", "MOST_TEXTS"))
    return f"{constants}\n\n\n{own_source(module, 'grouped', 'even_stops', 'filled', 'TokenBatches')}"


def _trainer_source() -> str:
    """Return a Trainer with this batch sampler, and with a loss that weighs every text equally."""
    module, members = "training/trainer.py", ("loss_is_scaled_for_ga", "compute_loss")
    scaled, loss = (own_source(module, f"RunTrainer.{member}") for member in members)
    return f"class RunTrainer(Trainer):\n{scaled}\n\n{_LOADER}\n\n{loss}"


def _device_arguments(config: TrainConfig) -> list[str]:
    return ["use_cpu=not torch.cuda.is_available()"] + [_BFLOAT16] * (config.arithmetic == "fast")


def _settings_arguments(config: TrainConfig) -> list[str]:
    """Return Trainer's arguments of the settings, without those that equal its defaults."""
    defaults = {
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
    }
    names = ("learning_rate", *defaults, "num_train_epochs", "per_device_train_batch_size")
    settings = [(name, getattr(config, name)) for name in names]
    changed = [f"{name}={literal(value)}" for name, value in settings if defaults.get(name) != value]
    return [*changed, "seed=SEED"]


def _trainer_lines(
    config: TrainConfig,
    facts: ModelFacts,
    trainer_class: str,
    arguments: Sequence[Argument],
    keywords: Sequence[str],
) -> str:
    """Return lines that define `arguments` (TrainingArguments) and `trainer`."""
    lines = [call("arguments = TrainingArguments", arguments)]
    trainer_arguments: list[Argument] = [
        "model",
        "arguments",
        "train_dataset=train",
        *keywords,
        "processing_class=tokenizer",
    ]
    if _has_custom_loss(config, facts):
        trainer_arguments.append("compute_loss_func=loss")
    if config.method == "lora" and config.loraplus_lr_ratio != 1.0:
        lines.append(_LORAPLUS.format(ratio=config.loraplus_lr_ratio, decay=config.weight_decay))
        trainer_arguments.append("optimizers=(optimizer, None)")
    return "\n".join([*lines, call(f"trainer = {trainer_class}", trainer_arguments)])


def train_block(config: TrainConfig, facts: ModelFacts) -> str:
    """Return lines that initialize the method, train, and rescale the head of a regression."""
    lines = [_EVA] if config.method == "lora" and config.init_lora_weights == "eva" else []
    lines.append("trainer.train()")
    lines += [_RESCALE_HEAD] if facts.problem_type == REGRESSION else []
    return "\n".join(lines)


def evaluate_block() -> str:
    """Return lines that print the metrics on the test rows."""
    return """# Texts of similar length in one batch need little padding.
order = np.argsort([-len(tokens) for tokens in test["input_ids"]], kind="stable")
test = test.select(order)
result = metrics(trainer.predict(test).predictions, np.array(test["labels"]))
print(json.dumps(result, indent=2))"""


def save_block(config: TrainConfig, folder: str) -> str:
    """Return lines that save the adapter, or the model if it was trained itself.

    `folder` is a template of an expression.
    """
    if METHODS[config.method].peft_config is None:
        path, options = folder.format("model"), ""
    else:
        path, options = folder.format("adapter"), ", save_embedding_layers=False"
    return f"model.save_pretrained({path}{options})\ntokenizer.save_pretrained({path})"
