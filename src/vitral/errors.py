"""Every error that Vitral raises, as one tree.

VitralError                     anything that is the caller's to put right
├── SettingsError               an environment variable or option has a value that cannot be used
├── HardwareError               this machine cannot do what was asked (instruction set, memory)
├── SpecError                   an architecture that contradicts itself, or that we do not run
│   └── UnsupportedArchitecture   a model of another family (Qwen2, Gemma, ...)
├── FormatError                 bytes that are not what they claim to be
│   ├── TruncatedFile             the file ends before its own header says it does
│   ├── UnsupportedType        weights of a type that Vitral does not read
│   ├── UnsafeFile                the file asks for something that a model file has no need of
│   └── TensorMismatch            a tensor is missing, left over, or of the wrong shape
├── SignatureError              a signature that is not there, or does not fit the model
├── TokenizerError              a vocabulary that cannot be read, an id that does not exist
│   └── TemplateError             a chat template that fails, or wants too much
├── RequestError                a generation request that cannot be served as asked
│   └── ContextOverflow           prompt and answer do not fit the context
├── NumericalError              the model computed something that is not a number
├── ServiceError                the server cannot do it now; the request itself may be fine
│   ├── EngineLost                the process that computes died or is not back yet
│   ├── Overloaded                more work is queued than the server takes on
│   ├── ShuttingDown              the server is on its way out
│   └── RecordStoreError          records cannot be written, so no answer may be given
├── LicenceError                terms, a use or a licence name that cannot be read
├── TuneError                   a tuning that cannot be done as asked
│   ├── RecipeError               a recipe with an unknown key or a value that cannot be used
│   ├── DataError                 rows that cannot be trained on
│   └── AdapterMismatch           an adapter that does not belong to this model, or matches nothing in it
└── HubError                    a model that cannot be found, fetched or verified
    ├── ModelNotFound             no such path, short name or repository
    └── DigestMismatch            the bytes are not the ones that were promised

A message says what was found, what is allowed, and what to do.
"""

from __future__ import annotations

__all__ = [
    "AdapterMismatch",
    "ContextOverflow",
    "DataError",
    "DigestMismatch",
    "EngineLost",
    "FormatError",
    "HardwareError",
    "HubError",
    "LicenceError",
    "ModelNotFound",
    "NumericalError",
    "Overloaded",
    "RecordStoreError",
    "RecipeError",
    "RequestError",
    "ServiceError",
    "SettingsError",
    "ShuttingDown",
    "SignatureError",
    "SpecError",
    "TemplateError",
    "TensorMismatch",
    "TokenizerError",
    "TruncatedFile",
    "TuneError",
    "UnsafeFile",
    "UnsupportedArchitecture",
    "UnsupportedType",
    "VitralError",
]


class VitralError(Exception):
    """Anything that is the caller's to put right: one line, no traceback, exit code 2."""


class SettingsError(VitralError):
    """An environment variable or an option has a value that cannot be used."""


class HardwareError(VitralError):
    """This machine cannot do what was asked."""


class SpecError(VitralError):
    """An architecture that contradicts itself, or a field that nobody knows."""


class UnsupportedArchitecture(SpecError):
    """A model of a family that Vitral does not run."""


class FormatError(VitralError):
    """Bytes that are not what they claim to be."""


class TruncatedFile(FormatError):
    """The file ends before its own header says it does."""


class UnsupportedType(FormatError):
    """Weights of a type that Vitral does not read."""


class UnsafeFile(FormatError):
    """The file asks for something that a model file has no need of."""


class TensorMismatch(FormatError):
    """A tensor is missing, left over, or of the wrong shape or type."""


class SignatureError(VitralError):
    """A signature that is not there, or that does not fit the model or the key."""


class TokenizerError(VitralError):
    """A vocabulary that cannot be read, or an id that does not exist."""


class TemplateError(TokenizerError):
    """A chat template that fails, or that wants too much time or space."""


class RequestError(VitralError):
    """A generation request that cannot be served as asked."""


class ContextOverflow(RequestError):
    """Prompt and answer together do not fit the context."""


class NumericalError(VitralError):
    """The model computed something that is not a number, so there is no next token."""


class ServiceError(VitralError):
    """The server cannot do it now; the same request may work later."""


class EngineLost(ServiceError):
    """The process that computes died, or is not back yet."""


class Overloaded(ServiceError):
    """More work is queued than the server takes on; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(ServiceError):
    """The server is on its way out and takes no new work."""


class RecordStoreError(ServiceError):
    """Records cannot be written, so no answer may be given."""


class LicenceError(VitralError):
    """Terms, an intended use or the name of a licence that cannot be read."""


class TuneError(VitralError):
    """A tuning that cannot be done as asked."""


class RecipeError(TuneError):
    """A recipe with an unknown key, or a value that cannot be used."""


class DataError(TuneError):
    """Rows that cannot be trained on; the message names the first and counts the rest."""


class AdapterMismatch(TuneError):
    """An adapter that does not belong to this model, or matches nothing in it."""


class HubError(VitralError):
    """A model that cannot be found, fetched or verified."""


class ModelNotFound(HubError):
    """No file, folder, short name or repository goes by this name."""


class DigestMismatch(HubError):
    """The bytes are not the ones that were promised."""
