"""Everything that may look at media: what it gives, and how it fails."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentdiff.errors import InputError
from latentdiff.evaluation.extractors import Classifier, Extractor, load_extractor
from latentdiff.evaluation.judging import load_bundled_judge, name_sounds

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
WAVES = [(0.1 * RNG.standard_normal(size)).astype(np.float32) for size in (16000, 16000, 9000)]
PICTURES = [RNG.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(3)]


@torch.no_grad()
def look(extractor: Extractor, media: list[np.ndarray]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return extractor(media)


def test_the_bundled_judge_is_the_default_and_hears_as_ever() -> None:
    judge = load_extractor(None, "audio", CPU)
    features, logits = look(judge, WAVES)
    names = [judge.classes["sources"][i] for i in logits["sources"].argmax(1).tolist()]
    assert names[:2] == name_sounds(load_bundled_judge(), np.stack(WAVES[:2]))
    assert features.shape == (3, 64) and len(judge.identity) == 64 and judge.sampling_rate == 16000


def test_clap_gives_unit_vectors_of_sounds_and_words(tiny_clap: Path) -> None:
    clap = load_extractor(str(tiny_clap), "audio", CPU)
    features, logits = look(clap, WAVES)
    words = clap.embed_text(["a piano", "rain"])
    assert clap.reads_text and not logits and features.shape == (3, 16) and words.shape == (2, 16)
    for vectors in (features, words):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


@pytest.mark.parametrize("kind", ["audio", "image"])
def test_classifiers_give_what_their_last_layer_sees(kind: str, hearer: Path, looker: Path) -> None:
    extractor = load_extractor(str(hearer if kind == "audio" else looker), kind, CPU)
    assert isinstance(extractor, Classifier)
    media = WAVES if kind == "audio" else PICTURES
    features, logits = look(extractor, media)
    head = extractor.model.classifier.dense if kind == "audio" else extractor.model.classifier
    torch.testing.assert_close(head(features), logits["sources"])
    assert extractor.classes["sources"][0] == ("piano" if kind == "audio" else "dog")
    alone, _ = look(extractor, media[2:])
    torch.testing.assert_close(alone[0], features[2])


def test_what_is_none_is_said(tmp_path: Path, tiny_pipeline: Path, looker: Path) -> None:
    cases = {
        "there is no extractor": "nowhere",
        "neither here nor to be fetched": "nobody/no-such-clap",
        "for image and the data is audio": str(looker),
        "holds a PatchAutoencoder": str(tiny_pipeline / "vae"),
    }
    for said, source in cases.items():
        with pytest.raises(InputError, match=said) as caught:
            load_extractor(source, "audio", CPU)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"_class_name": "AudioJudge"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_extractor(str(tmp_path), "audio", CPU)
