"""Table of the fine-tuning methods: their settings, defaults and restrictions. Does not import PEFT."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

LORA, ALL_LINEAR = "lora", "all-linear"
TRAINS_LAYERS = ("full", "bitfit")  # methods that train weights of the encoder itself
HEAD_NAMES = ("classifier", "score")  # modules that PEFT trains and saves with every SEQ_CLS adapter
_PROMPT_REASON = "it adds virtual tokens before the text and changes no weights"
_HEAD_NOTE = "The head reads one vector of the frozen model"
_TARGETS = ("target_modules", "top_layers")
_NO_CACHE = "its transformers model does not accept past keys and values, which the prefix consists of"


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    Attributes:
        label: Display name.
        help: One sentence.
        source: The paper.
        settings: Fields of TrainConfig that this method reads besides the training settings.
        defaults: Default settings that differ from those of TrainConfig.
        peft_config: Name of PEFT's config class; None if weights of the model itself are trained.
        cannot_merge: Why the adapter cannot be merged; empty if it can.
        unsupported: For each unsupported `model_type`, the reason.
        note: Advice for choosing the method.
    """

    label: str
    help: str
    source: str
    settings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    peft_config: str | None = None
    cannot_merge: str = ""
    unsupported: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def takes_target_modules(self) -> bool:
        return "target_modules" in self.settings

    def unsupported_reason(self, model_type: str) -> str:
        """Return why the method cannot be used on encoders of this `model_type`, or an empty string."""
        return self.unsupported.get(model_type, "")


def _read_only(**entries: Any) -> Mapping[str, Any]:
    return MappingProxyType(entries)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        LORA: Method(
            "LoRA",
            "Two low-rank matrices beside each chosen weight learn its change.",
            "Hu et al. 2021, arXiv:2106.09685",
            (
                *_TARGETS, "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
                "init_lora_weights", "loraplus_lr_ratio", "load_in_bits",
            ),
            peft_config="LoraConfig",
        ),
        "adalora": Method(
            "AdaLoRA",
            "LoRA that moves its rank, while training, to the weights that need it.",
            "Zhang et al. 2023, arXiv:2303.10512",
            (*_TARGETS, "init_r", "target_r", "lora_alpha", "lora_dropout", "orth_reg_weight"),
            _read_only(learning_rate=1e-2, lora_alpha=64),
            peft_config="AdaLoraConfig",
            note="With class weights or numbers as labels PEFT leaves the orthogonality term out of "
            "the loss.",
        ),
        "ia3": Method(
            "IA3",
            "One vector for each chosen weight rescales its activations.",
            "Liu et al. 2022, arXiv:2205.05638",
            _TARGETS,
            _read_only(learning_rate=3e-2),
            peft_config="IA3Config",
        ),
        "vera": Method(
            "VeRA",
            "All weights share two random matrices; only two small vectors per weight are trained.",
            "Kopiczko et al. 2023, arXiv:2310.11454",
            (*_TARGETS, "r", "d_initial"),
            _read_only(r=256, learning_rate=3e-2),
            peft_config="VeraConfig",
        ),
        "loha": Method(
            "LoHa",
            "The change is the product, entry by entry, of two low-rank ones.",
            "Hyeon-Woo et al. 2021, arXiv:2108.06098",
            (*_TARGETS, "r", "alpha"),
            _read_only(learning_rate=5e-3),
            peft_config="LoHaConfig",
        ),
        "lokr": Method(
            "LoKr",
            "The change is a Kronecker product of a small and a low-rank matrix.",
            "Yeh et al. 2023, arXiv:2309.14859",
            (*_TARGETS, "r", "alpha", "decompose_factor"),
            _read_only(learning_rate=1.5e-2),
            peft_config="LoKrConfig",
        ),
        "oft": Method(
            "OFT",
            "Each chosen weight is rotated in blocks, so that the angles between its neurons stay the same.",
            "Qiu et al. 2023, arXiv:2306.07280",
            (*_TARGETS, "oft_block_size"),
            _read_only(learning_rate=5e-3),
            peft_config="OFTConfig",
        ),
        "boft": Method(
            "BOFT",
            "OFT whose rotation is a product of butterfly factors.",
            "Liu et al. 2023, arXiv:2311.06243",
            (*_TARGETS, "boft_block_size"),
            _read_only(learning_rate=1e-2),
            peft_config="BOFTConfig",
            note="One butterfly factor: PEFT supports more only where it can compile CUDA code.",
        ),
        "fourierft": Method(
            "FourierFT",
            "A few Fourier coefficients stand for each weight's whole change.",
            "Gao et al. 2024, arXiv:2405.03003",
            (*_TARGETS, "n_frequency", "scaling"),
            _read_only(learning_rate=1e-1),
            peft_config="FourierFTConfig",
        ),
        "c3a": Method(
            "C3A",
            "The change is made of circulant blocks: high rank from few numbers.",
            "Chen et al. 2024, arXiv:2407.19342",
            (*_TARGETS, "block_size"),
            _read_only(learning_rate=3e-1),
            peft_config="C3AConfig",
        ),
        "hira": Method(
            "HiRA",
            "The low-rank matrix multiplies the weight, entry by entry, so that the change has high rank.",
            "Huang et al. 2025, ICLR",
            (*_TARGETS, "r"),
            _read_only(r=32, learning_rate=5e-3),
            peft_config="HiraConfig",
        ),
        "randlora": Method(
            "RandLoRA",
            "A full-rank change as a trained mix of fixed random matrices.",
            "Albert et al. 2025, arXiv:2502.00987",
            (*_TARGETS, "r", "randlora_alpha"),
            _read_only(r=32),
            peft_config="RandLoraConfig",
        ),
        "ln_tuning": Method(
            "LN-tuning",
            "Only the layer norms are trained.",
            "Zhao et al. 2023, arXiv:2312.11420",
            defaults=_read_only(learning_rate=5e-3, num_train_epochs=2.0),
            peft_config="LNTuningConfig",
        ),
        "bitfit": Method(
            "BitFit",
            "Only the biases are trained.",
            "Ben Zaken et al. 2021, arXiv:2106.10199",
            defaults=_read_only(learning_rate=2e-3, num_train_epochs=2.0),
            unsupported=_read_only(modernbert="ModernBERT has no biases"),
        ),
        "prefix_tuning": Method(
            "Prefix tuning",
            "Trained keys and values stand before the text in every layer.",
            "Li and Liang 2021, arXiv:2101.00190",
            ("num_virtual_tokens",),
            _read_only(learning_rate=3e-2, num_train_epochs=2.0),
            peft_config="PrefixTuningConfig",
            cannot_merge=_PROMPT_REASON,
            unsupported=MappingProxyType(
                dict.fromkeys(("distilbert", "deberta-v2", "modernbert", "mpnet", "albert"), _NO_CACHE)
            ),
        ),
        "prompt_tuning": Method(
            "Prompt tuning",
            "Trained vectors stand before the text as if they were words.",
            "Lester et al. 2021, arXiv:2104.08691",
            ("num_virtual_tokens",),
            _read_only(learning_rate=3e-3, num_train_epochs=4.0),
            peft_config="PromptTuningConfig",
            cannot_merge=_PROMPT_REASON,
            note=f"{_HEAD_NOTE}, which a prompt changes little in a model this small: Lester et al. "
            "found that it matches fine-tuning in models of billions of parameters.",
        ),
        "p_tuning": Method(
            "P-tuning",
            "Prompt tuning whose vectors come from a small network.",
            "Liu et al. 2021, arXiv:2103.10385",
            ("num_virtual_tokens", "encoder_hidden_size"),
            _read_only(learning_rate=5e-3, num_train_epochs=4.0),
            peft_config="PromptEncoderConfig",
            cannot_merge=_PROMPT_REASON,
            note=f"{_HEAD_NOTE}, which a prompt changes little in a model this small; the result differs by "
            "several points between seeds.",
        ),
        "head_only": Method(
            "Head only",
            "The encoder is frozen; only the classification head is trained.",
            "the usual baseline, also called linear probing",
            defaults=_read_only(learning_rate=1e-2),
            note=f"{_HEAD_NOTE}, so that vector limits the result. The embedded model gives that of "
            "[CLS], but was trained on the mean of all.",
        ),
        "full": Method(
            "Full fine-tuning",
            "Every weight is trained.",
            "the usual baseline; Devlin et al. 2018, arXiv:1810.04805",
            defaults=_read_only(learning_rate=1e-4),
        ),
    }
)  # fmt: skip
_WEIGHT_INITIALIZATIONS = ("pissa", "olora")
_NOT_PEFT_ARGUMENTS = ("loraplus_lr_ratio", "load_in_bits", "init_lora_weights", *_TARGETS)


def defaults_of(method: Any, target_modules: Any = ()) -> Mapping[str, Any]:
    """Return a method's own default settings; empty for LoRA on selected modules, and for unknown methods.

    LoRA on all linear layers uses half the learning rate: at 2e-3 one seed in five collapsed to the majority
    class.
    """
    if method == LORA and target_modules in (ALL_LINEAR, [ALL_LINEAR], (ALL_LINEAR,)):
        return {"learning_rate": 1e-3}
    return METHODS[method].defaults if isinstance(method, str) and method in METHODS else {}


def find_conflict(settings: Mapping[str, Any]) -> str:
    """Return why these settings cannot be combined on any model, or an empty string."""
    if settings["method"] == "adalora" and settings["init_r"] <= settings["target_r"]:
        ranks = f"init_r is {settings['init_r']}, not above target_r {settings['target_r']}"
        return f"{ranks}; AdaLoRA only reduces the rank."
    if settings["method"] != LORA:
        return ""
    initialization, bits = settings["init_lora_weights"], settings["load_in_bits"]
    if bits not in (4, 8, 32):
        return f"load_in_bits is {bits}; it takes 32, 8 or 4."
    if bits < 32 and initialization in _WEIGHT_INITIALIZATIONS:
        return (
            f"init_lora_weights is {initialization!r}, which starts from full-precision weights; "
            "with load_in_bits below 32 choose default, gaussian or eva."
        )
    return ""


def find_model_conflict(settings: Mapping[str, Any], model_type: str) -> str:
    """Return why these settings cannot be used on encoders of this `model_type`, or an empty string."""
    method = METHODS[settings["method"]]
    reason = method.unsupported_reason(model_type)
    if reason:
        return f"{method.label} cannot be used on {model_type} models: {reason}; choose another method."
    if settings["method"] == LORA and settings["init_lora_weights"] == "eva" and model_type == "deberta-v2":
        return (
            "init_lora_weights 'eva' cannot be used on deberta-v2 models: their query and key matrices also "
            "read relative positions, which are not the data that EVA uses; choose default."
        )
    return ""


def virtual_tokens(settings: Mapping[str, Any]) -> int:
    """Return how many of the model's positions the method's virtual tokens occupy."""
    uses_tokens = "num_virtual_tokens" in METHODS[settings["method"]].settings
    return settings["num_virtual_tokens"] if uses_tokens else 0


def bits_of(settings: Mapping[str, Any]) -> int:
    """Return the bits of a frozen base weight in training; 32 for methods without a quantized base."""
    return settings["load_in_bits"] if "load_in_bits" in METHODS[settings["method"]].settings else 32


def peft_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method's settings that are passed unchanged to its PEFT config."""
    names = METHODS[settings["method"]].settings
    return {name: settings[name] for name in names if name not in _NOT_PEFT_ARGUMENTS}
