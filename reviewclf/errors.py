"""One error type per kind of user mistake.

Every message says what is wrong, where (file, row, column or setting) and what to do about it.
"""

from __future__ import annotations

from typing import Any


class ReviewclfError(Exception):
    """Base of all errors that a user can mend; the command line prints them without a traceback."""


class SettingsError(ReviewclfError):
    """A setting is missing, malformed or contradicts another one."""


class TaxonomyError(ReviewclfError):
    """The taxonomy file cannot be used."""


class StoreError(ReviewclfError):
    """The store cannot be read or written, or what lies in it is damaged."""


class ConflictError(StoreError):
    """Another writer committed first; read the new state and try again."""


class DataContractError(ReviewclfError):
    """Input data breaks its contract: unreadable file, missing column, wrong type."""


class SourceUnavailableError(DataContractError):
    """The server that holds input data is away for the moment; try again later."""


class QualityError(DataContractError):
    """A suite of data checks failed as a whole, so the run stops before anything is published."""


class LabelingError(ReviewclfError):
    """Votes cannot be read, requested or aggregated.

    Attributes
    ----------
    votes : DataFrame or None
        What :func:`reviewclf.labeling.run_llm` had been answered by then.
    """

    votes: Any = None


class AnnotatorUnavailableError(LabelingError):
    """The server that votes is away for the moment; votes so far are kept, try again later."""


class AugmentationError(ReviewclfError):
    """Synthetic reviews cannot be asked for or read."""


class DatasetError(ReviewclfError):
    """No usable training set can be built from the labels at hand."""


class LeakError(DatasetError):
    """The training set shares reviews, or near-duplicates of them, with what it is judged on."""


class TrainingError(ReviewclfError):
    """A candidate cannot be trained."""


class EncoderUnavailableError(TrainingError):
    """A pretrained encoder is neither on this machine nor to be had from the hub; other candidates can still be trained."""


class EvaluationError(ReviewclfError):
    """Predictions cannot be scored: lengths differ, no gold rows, unknown labels."""


class GateError(ReviewclfError):
    """The gate's rules or its report cannot be used, or a version has not passed them."""


class StaleVerdictError(GateError):
    """The verdict on a version was made against a champion that is champion no more."""


class RegistryError(ReviewclfError):
    """The tracking server or the model registry refused, or does not hold what was asked for."""


class RegistryUnavailableError(RegistryError):
    """The tracking server or the model registry is away, overloaded or out of space for the moment; try again later."""


class ServingError(ReviewclfError):
    """The server of online answers cannot be started."""


# Another writer, a store or a server that is away for a moment: these may pass by themselves.
PASSING_ERRORS = (AnnotatorUnavailableError, ConflictError, RegistryUnavailableError, SourceUnavailableError, StoreError)
