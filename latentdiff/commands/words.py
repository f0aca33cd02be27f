"""The verb ``words``: which words a finished model reads, and as what."""

from pathlib import Path

from latentdiff.data.folder import read_folder
from latentdiff.errors import InputError
from latentdiff.interop.folder import INDEX
from latentdiff.models.vocabulary import FILE


def write_words(model: Path, data: Path, encoder: str, word_list: Path, nearness: float) -> None:
    """Write ``words.txt`` into a pipeline's folder and print how many words it has.

    Raises:
        InputError: if the folder holds no pipeline, or something cannot be read.
    """
    if not (model / INDEX).is_file():
        raise InputError(f"{model} is no pipeline folder: it has no {INDEX}. Name the folder OUTPUT/pipeline of a run.")
    if not 0 < nearness <= 1:
        raise InputError(f"--nearness is {nearness:g}; it must be more than 0 and at most 1.")
    from latentdiff.data.synonyms import find_synonyms, read_words
    from latentdiff.models.sentences import SentenceEncoder

    words = read_words(word_list)
    captions = [text for row in read_folder(data) for text in row.captions]
    vocabulary = find_synonyms(captions, words, SentenceEncoder(encoder), nearness)
    vocabulary.save(model)
    counts = f"{len(vocabulary.known)} words of captions, {len(vocabulary.alike)} read as one of them"
    print(f"{model / FILE}  {counts}, {len(vocabulary.far)} with the nearest only")
