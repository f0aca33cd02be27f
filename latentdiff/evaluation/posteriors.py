"""Figures from a classifier's posterior: KL to the real pair, inception-type score, and agreement with the names."""

import numpy as np
import torch
from torch import Tensor

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Figures, NotComputableError

TOP = 5


def kl_divergence(real: Tensor, made: Tensor) -> Tensor:
    """KL(p_real | p_made) in nats of two softmax posteriors, from logits (N, K) each; (N,)."""
    log_p, log_q = real.log_softmax(1), made.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def kl(case: Case, bootstrap: Bootstrap) -> Figures:
    """Mean over pairs of `kl_divergence`, as AudioGen and AudioLDM report it (Kreuk et al. 2023, section 4.1).

    For the floor each real item is paired with another real one that has the same names.
    """
    assert case.paired is not None  # the registry says that it needs pairs
    return {"": bootstrap.mean(kl_divergence(case.paired.posterior, case.subject.posterior).numpy())}


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) | p(y)) over all samples at once (Salimans et al. 2016, section 4), of logits (N, K)."""
    log_p = logits.log_softmax(1)
    log_marginal = log_p.logsumexp(0) - np.log(len(logits))
    return float((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())


def inception(case: Case, bootstrap: Bootstrap) -> Figures:
    """`inception_score`; the extractor says whose classes they are."""
    logits = case.subject.posterior
    return {"": bootstrap.statistic(lambda index: inception_score(logits[torch.from_numpy(index)]), len(logits))}


def judge(case: Case, bootstrap: Bootstrap) -> Figures:
    """Shares of media in which the classifier hears or sees what the metadata names, by attribute.

    ``accuracy`` and ``top5`` are of media with one true name; ``all_of_several`` is of those with k > 1 names: all of
    them among the first k.

    Raises:
        NotComputableError: if no true name is among the classes.
    """
    subject, figures = case.subject, {}
    for attribute, logits in subject.logits.items():
        names = subject.classes[attribute]
        ranked = logits.argsort(dim=1, descending=True, stable=True).tolist()
        hits: dict[str, list[bool]] = {"accuracy": [], f"top{TOP}": [], "all_of_several": []}
        for order, truth in zip(ranked, subject.truths, strict=True):
            true = truth.get(attribute, frozenset())
            if not true or not true <= set(names):
                continue
            told = [names[i] for i in order[: max(TOP, len(true))]]
            if len(true) == 1:
                hits["accuracy"].append(told[0] in true)
                hits[f"top{TOP}"].append(bool(true & set(told[:TOP])))
            else:
                hits["all_of_several"].append(true <= set(told[: len(true)]))
        for name, values in hits.items():
            if values:
                key = name if attribute == "sources" else f"{attribute} {name}"
                figures[key] = bootstrap.mean(np.array(values))
    if not figures:
        raise NotComputableError("no name in the data's metadata is among the classes of the extractor")
    return figures
