"""The errors a person can mend: each message says what was wrong, with the value, and what to do."""


class PeftCoreError(Exception):
    """Base of all domain errors; anything else that is raised is a bug."""


class ConfigError(PeftCoreError):
    """A setting that is unknown, of the wrong type or out of bounds."""


class DataError(PeftCoreError):
    """Labelled text that cannot be read, or that no classifier can be trained or judged on."""


class ModelError(PeftCoreError):
    """A base model that is missing, damaged or no encoder classifier, or modules it does not have."""


class HubError(PeftCoreError):
    """A repository on the Hub that is missing, gated or out of reach."""


class RunError(PeftCoreError):
    """A run that does not exist, is not finished or has lost files."""


class DamagedError(RunError):
    """A file of a run that is missing, cut or not as it was written."""


class InputsChangedError(RunError):
    """A run that cannot continue: its data, base model, tokenizer or settings are not those it began with."""


class MergeError(PeftCoreError):
    """An adapter that cannot be merged, or a merge whose certificate does not hold."""


class ExportError(PeftCoreError):
    """A model that cannot be written in the form asked for, or is not the trained one once written."""
