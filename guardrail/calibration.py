"""From raw model outputs to probabilities: logistic (Platt) calibration, fitted on validation data.

Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines". Pure functions on numbers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ArtifactError

Probability = Annotated[float, Field(ge=0, le=1)]
# Half the width of the uncertain band, in log-odds, where none was fitted: from odds of 1 : 7.4
# below those of the caution threshold to 7.4 : 1 above them.
BAND_LOG_ODDS = 2.0


class Platt(BaseModel):
    """P = sigmoid(slope * log-odds + intercept); a negative slope would turn the order round."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: Annotated[float, Field(gt=0)] = 1.0
    intercept: float = 0.0

    def __call__(self, log_odds: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return calibrated probabilities, same shape."""
        return sigmoid(self.slope * np.asarray(log_odds, np.float64) + self.intercept)


class RuleCalibration(BaseModel):
    """P(the turn breaks this rule) from the violation product, the level and the cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # None may be negative: a rule nearer to what was done must not become less likely to be broken.
    product: Annotated[float, Field(ge=0)] = 1.0
    level: Annotated[float, Field(ge=0)] = 1.0
    cosine: Annotated[float, Field(ge=0)] = 0.0
    intercept: float = 0.0

    def __call__(
        self, products: NDArray[np.floating], log_odds: float, cosines: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return probabilities.

        Args:
            products: (k,) <violation of the turn, rule embedding>.
            log_odds: log P(unsafe)/P(casual) of the turn, not calibrated.
            cosines: (k,) of conversation and rule embedding.
        """
        return sigmoid(
            self.product * np.asarray(products, np.float64)
            + self.level * log_odds
            + self.cosine * np.asarray(cosines, np.float64)
            + self.intercept
        )


class Thresholds(BaseModel):
    """Where the decision changes; all fitted on validation data.

    Attributes:
        caution: lowest P(unsafe) that is flagged.
        intervention: lowest P(needs intervention) of a flagged turn that asks for intervention.
        rule: lowest P(rule broken) that flags by itself, so that a new rule can fire.
        touch: lowest cosine at which a rule counts as touched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    caution: Probability = 0.5
    intervention: Probability = 0.5
    rule: Probability = 0.9
    touch: Annotated[float, Field(ge=-1, le=1)] = 0.4


class Band(BaseModel):
    """The P(unsafe) at which the encoder is unsure and a second opinion is worth having; ends included."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: Probability
    high: Probability

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> Band:
        if self.low > self.high:
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")
        return self

    def __contains__(self, probability: float) -> bool:
        return self.low <= probability <= self.high

    @classmethod
    def around(cls, threshold: float) -> Band:
        """Return the band for a caution threshold where none was fitted on traffic."""
        middle = log_odds(threshold)
        low, high = sigmoid(np.array([middle - BAND_LOG_ODDS, middle + BAND_LOG_ODDS])).tolist()
        return cls(low=low, high=high)


class Calibration(BaseModel):
    """Everything that turns an encoder's raw output into a decision.

    Attributes:
        unsafe: of P(unsafe).
        intervention: of P(needs intervention).
        rule: of P(a rule is broken).
        thresholds: where the decision changes.
        band: what goes to a judge if there is one; None takes the band around the caution threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    unsafe: Platt = Platt()
    intervention: Platt = Platt()
    rule: RuleCalibration = RuleCalibration()
    thresholds: Thresholds = Thresholds()
    band: Band | None = None

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Calibration:
        """Read the JSON of a calibration file.

        Raises:
            ArtifactError: it does not fit the format.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"expected a calibration in {where}: {place}: {first['msg']}") from error


def sigmoid(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 / (1 + e^-x), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))


def unsafe_log_odds(level_logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log P(unsafe)/P(casual) from (n, 3) level logits: (n,)."""
    logits = np.asarray(level_logits, np.float64)
    return np.logaddexp(logits[:, 1], logits[:, 2]) - logits[:, 0]


def intervention_log_odds(level_logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log P(needs intervention)/P(not) from (n, 3) level logits: (n,)."""
    logits = np.asarray(level_logits, np.float64)
    return logits[:, 2] - np.logaddexp(logits[:, 0], logits[:, 1])


def log_odds(probability: float) -> float:
    """Return log p/(1-p), clipped so that 0 and 1 stay finite."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def as_json(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as plain JSON types."""
    return calibration.model_dump(mode="json")
