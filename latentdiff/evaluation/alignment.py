"""How well media and words agree, by a model that embeds both."""

from latentdiff.evaluation.bootstrap import Bootstrap
from latentdiff.evaluation.evidence import Case, Figures


def clap(case: Case, bootstrap: Bootstrap) -> Figures:
    """Mean cosine of each sound's embedding and its caption's, from -1 to 1 (Wu et al. 2023)."""
    assert case.subject.text is not None  # the registry says that it needs text
    audio = case.subject.features / case.subject.features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return {"": bootstrap.mean((audio * case.subject.text).sum(1).numpy())}
