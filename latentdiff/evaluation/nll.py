"""The likelihood of held-out media as figures of a report: bits per dimension, and what they are made of."""

from typing import Any

from latentdiff.errors import InputError
from latentdiff.evaluation.bits import bits_per_dim
from latentdiff.evaluation.bootstrap import Bootstrap, Estimate
from latentdiff.evaluation.evidence import Figures, NotComputableError
from latentdiff.evaluation.sets import MediaSet


def nll(pipe: Any, media: MediaSet, bootstrap: Bootstrap) -> Figures:
    """The variational bound of all training times, total and term by term; the total's name says of what.

    The intervals are the normal ones of the terms' standard errors over the media, 1.96 to either side: the times and
    the noise of each medium are drawn as well, which resampling alone would not see again.

    Args:
        pipe: one of our pipelines.
        media: real ones.
        bootstrap: of which the seed is taken.

    Raises:
        NotComputableError: if the model has no such likelihood.
    """
    try:
        bits = bits_per_dim(pipe, list(media.rows), framing=media.framing, seed=bootstrap.seed)
    except InputError as error:
        raise NotComputableError(str(error).rstrip(".")) from error
    return {
        name: Estimate(mean, mean - 1.96 * deviation, mean + 1.96 * deviation, bits.media)
        for name, (mean, deviation) in {bits.label: bits.total, **bits.terms}.items()
    }
