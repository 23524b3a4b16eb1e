"""The errors that users meet. Each message states the value, the limit and the tensor's name."""


class RecoverError(Exception):
    """Base of every error that this package raises on purpose; its text is meant for people."""


class GGUFError(RecoverError):
    """A file is not a GGUF file that can be used: damaged, truncated, hostile or unsupported."""


class SafetensorsError(RecoverError):
    """A file is not a safetensors file that can be used: damaged, hostile or unsupported."""


class InputError(RecoverError):
    """An input was changed or truncated while it was read, or its disk failed."""


class QuantError(RecoverError):
    """A tensor's type cannot be decoded or encoded, or its bytes do not fit its type."""


class PlanError(RecoverError):
    """The inputs do not belong together, or what was asked for cannot be done with them."""


class UsageError(PlanError):
    """Whatever the inputs are: an option has no such value, or does not go with another one."""


class OutputError(RecoverError):
    """The output cannot be written: disk full, folder not writable, or it is one of the inputs."""


class ExecutionError(RecoverError):
    """Those who were to do the work are not there, or are lost: a cluster, or a process."""


class ReblockError(RecoverError):
    """A source of integer weights is damaged, hostile, or has no exact GGUF type."""


class CalibrationError(RecoverError):
    """A calibration cannot be fitted, read, or applied to these inputs."""


class EvaluationError(RecoverError):
    """A model cannot be compared with the truth."""


class VocabularyError(RecoverError):
    """A vocabulary cannot be turned into the files, or read from the files, of other programs."""
