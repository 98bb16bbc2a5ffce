"""Writing synthetic reviews: requests, answers, resuming, and what comes out at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf.augmentation import Synthesis, generate_and_filter
from reviewclf.augmentation.generators import (
    Generator,
    OpenAIGenerator,
    RecordedGenerator,
    TransformersGenerator,
    Written,
    make_generator,
)
from reviewclf.augmentation.prompts import WritingRequest, load_writing_prompts, parse_reviews, products_of
from reviewclf.errors import AnnotatorUnavailableError, AugmentationError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.annotators.keywords import KeywordAnnotator
from reviewclf.settings import Settings, load_settings
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from tests.llm_server import Answer, ChatServer, completion, running
from tests.tiny_llm import tiny
from tests.unit.augmentation.test_filters import CATEGORY, JEWELLERY, TAXONOMY, real

TEXTS = [
    "Браслет подарила маме на юбилей",
    "Зонт унесло ветром с набережной",
    "Кулон пришёл без цепочки и коробки",
    "Очки поцарапались в первую неделю",
    "Шарф колется даже через воротник",
    "Брошь оторвалась вместе с булавкой",
    "Сумка пахнет клеем второй месяц",
    "Ремень треснул у последней дырки",
    "Платок полинял на белую подушку",
    "Перстень велик, ношу на большом пальце",
    "Запонки потерялись через два банкета",
    "Чокер душит, вернула обратно",
]


class Writer:
    """A costly generator whose server goes away after `lasts` answers."""

    version = "writer@1"
    is_costly = True

    def __init__(self, lasts: int | None = None) -> None:
        self.lasts = lasts
        self.asked: list[WritingRequest] = []

    def available(self, category: str) -> None:
        return None

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        for request in requests:
            if self.lasts is not None and len(self.asked) >= self.lasts:
                raise AnnotatorUnavailableError("the server is away")
            self.asked.append(request)
            texts = [TEXTS[(2 * request.number + place) % len(TEXTS)] for place in (0, 1)]
            yield Written(
                **request.model_dump(include={"category", "number", "seed", "prompt", "examples"}),
                generator=self.version,
                texts=(*texts, f"{request.number}. Серьги хорошие, всем советую"),
                tokens_in=100,
                tokens_out=50,
            )


def make_settings(tmp_path: Path, **options: Any) -> Settings:
    return load_settings(_env_file=None, home=tmp_path, **options)


def synthesize(settings: Settings, generator: Generator, n: int = 6, **arguments: Any) -> Synthesis:
    return generate_and_filter(
        CATEGORY,
        n,
        generator=generator,
        taxonomy=TAXONOMY,
        real=real(),
        store=Store(settings.store_uri),
        settings=settings,
        **{"annotator": KeywordAnnotator(TAXONOMY, confidence=0.6), **arguments},
    )


def test_writing_ends_when_enough_have_passed_and_every_candidate_is_accounted_for(tmp_path: Path) -> None:
    result = synthesize(make_settings(tmp_path, augmentation={"batch_size": 2}), Writer())
    assert len(result.kept) >= 6
    assert len(result.kept) + len(result.rejected) == result.report["written"]
    assert result.rejected["reason"].notna().all()
    rules: Any = result.report["rules"]
    assert sum(rules.values()) == len(result.rejected)
    assert rules["numbering"] == len(result.written)
    assert set(result.kept["label"]) == {CATEGORY}
    assert (result.kept["share"] == 1.0).all()
    assert result.kept["review_id"].is_unique


def test_same_seed_same_requests_other_seed_others(tmp_path: Path) -> None:
    first, second, other = Writer(), Writer(), Writer()
    a = synthesize(make_settings(tmp_path / "a"), first)
    b = synthesize(make_settings(tmp_path / "b"), second)
    synthesize(make_settings(tmp_path / "c", seed=7), other)
    pd.testing.assert_frame_equal(a.kept, b.kept)
    assert first.asked == second.asked
    assert [r.user for r in first.asked] != [r.user for r in other.asked]


def test_killed_writing_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with pytest.raises(AnnotatorUnavailableError):
        synthesize(settings, Writer(lasts=2), n=12)
    again = Writer()
    result = synthesize(settings, again, n=12)
    whole = Writer()
    undisturbed = synthesize(make_settings(tmp_path / "other"), whole, n=12)
    pd.testing.assert_frame_equal(result.kept, undisturbed.kept)
    assert len(again.asked) == len(whole.asked) - 2
    assert {r.number for r in again.asked}.isdisjoint({0, 1})


def test_what_was_published_is_not_written_again(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    first = synthesize(settings, Writer())
    again = Writer()
    second = synthesize(make_settings(tmp_path / "new"), again, known=first.written, known_votes=first.votes)
    assert again.asked == []
    pd.testing.assert_frame_equal(first.kept, second.kept)


def test_examples_are_training_reviews_of_the_class_without_personal_data(tmp_path: Path) -> None:
    rows = [
        ("t1", "Браслет хороший, пишите мне на masha@mail.ru", CATEGORY, "train"),
        ("t2", "Платье село отлично", "одежда", "train"),
        ("v1", "Зонт проверочный", CATEGORY, "validation"),
        ("g1", "Кошелёк золотой", CATEGORY, "test"),
    ]
    writer = Writer()
    generate_and_filter(
        CATEGORY,
        2,
        generator=writer,
        annotator=None,
        taxonomy=TAXONOMY,
        real=real(rows),
        store=Store(str(tmp_path)),
        settings=make_settings(tmp_path),
    )
    asked = "\n".join(request.user for request in writer.asked)
    assert "<пример>Браслет хороший, пишите мне на [почта]</пример>" in asked
    assert not any(word in asked for word in ("masha", "Платье", "проверочный", "золотой"))


def test_budget_ends_the_writing_and_says_so(tmp_path: Path) -> None:
    result = synthesize(make_settings(tmp_path, llm={"max_tokens": 200}), Writer(), n=50)
    assert "REVIEWCLF_LLM__MAX_TOKENS=200 is reached" in str(result.report["stopped"])
    assert len(result.written) == 2


def test_without_votes_nothing_passes(tmp_path: Path) -> None:
    result = synthesize(make_settings(tmp_path), Writer(), annotator=None)
    assert result.kept.empty
    assert "no votes" in set(result.rejected["detail"].str.split("; ").str[-1])


def test_votes_for_another_class_refuse_and_the_voter_sees_the_text_alone(tmp_path: Path) -> None:
    shown: list[Any] = []

    class Voter(KeywordAnnotator):
        def annotate(self, reviews: Any, **arguments: Any) -> Any:
            shown.extend(reviews)
            for vote in super().annotate(reviews, **arguments):
                yield vote.model_copy(update={"label": "обувь"})

    result = synthesize(make_settings(tmp_path), Writer(), annotator=Voter(TAXONOMY, confidence=0.6))
    assert result.kept.empty
    assert "0% of 1 votes; обувь" in set(result.rejected["detail"])
    assert shown
    assert not any(CATEGORY in review.model_dump_json() for review in shown)


def test_unknown_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(AugmentationError, match="'мебель' is not in the taxonomy"):
        generate_and_filter(
            "мебель",
            2,
            generator=Writer(),
            annotator=None,
            taxonomy=TAXONOMY,
            real=real(),
            store=Store(str(tmp_path)),
            settings=make_settings(tmp_path),
        )


# -- prompts and answers ---------------------------------------------------------------------------------------------


def test_requests_vary_and_name_products_of_the_category() -> None:
    prompts = load_writing_prompts()
    assert len(prompts) >= 2
    users = {prompt.fill(JEWELLERY, 5, number=n, seed=1).user for prompt in prompts for n in range(6)}
    assert len(users) == 6 * len(prompts)
    assert "зонты" in products_of(JEWELLERY)
    for user in users:
        assert "{" not in user.replace('{"reviews"', "")
        assert any(product in user for product in products_of(JEWELLERY))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id: x\nversion: 1", r"bad\.yaml: system"),
        (
            "id: x\nversion: 1\nsystem: s\nuser: '{n}'\nexamples: e\nmood: [a]\nlength: [a]\nstyle: [a]\ntypos: [a]",
            "must hold {category}",
        ),
        (":", r"bad\.yaml"),
    ],
)
def test_broken_prompt_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(AugmentationError, match=message):
        load_writing_prompts(tmp_path)


def test_folder_without_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(AugmentationError, match="REVIEWCLF_AUGMENTATION__PROMPTS"):
        load_writing_prompts(tmp_path)


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ('{"reviews": ["Серьги", "Кольцо"]}', ["Серьги", "Кольцо"]),
        ('```json\n["Серьги", {"text": "Кольцо"}, 5]\n```', ["Серьги", "Кольцо"]),
        ('Вот:\n{"отзывы": ["Серьги"]}', ["Серьги"]),
        ('{"reviews": ["Серьги", "Кольцо", "обор', ["Серьги", "Кольцо"]),
        ("<think>напишу</think>1. Серьги\n\n2. Кольцо", ["1. Серьги", "2. Кольцо"]),
        ('{"reviews": []}', []),
        ("", []),
    ],
)
def test_answers_are_read_without_mending(answer: str, texts: list[str]) -> None:
    assert parse_reviews(answer) == texts


# -- back ends -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running() as started:
        yield started


def openai_settings(url: str, **options: Any) -> Settings:
    llm = {"backend": "openai", "base_url": url, "model": "m", "max_retries": 0, "concurrency": 2}
    return load_settings(_env_file=None, llm=llm, **options)


def request_for(number: int = 0) -> WritingRequest:
    return load_writing_prompts()[0].fill(JEWELLERY, 2, number=number, seed=1)


def test_openai_asks_for_a_json_list_and_steps_down_where_it_is_refused(server: ChatServer) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request.get("response_format", {}).get("type") == "json_schema":
            return 400, {"error": {"message": "response_format is not supported"}}
        return 200, completion('{"reviews": ["Серьги хорошие", "Кольцо мало"]}')

    server.script = script
    settings = openai_settings(server.url)
    generator = OpenAIGenerator(settings.llm, settings.augmentation)
    written = sorted(generator.write([request_for(n) for n in range(3)]), key=lambda answer: answer.number)
    assert [answer.texts for answer in written] == [("Серьги хорошие", "Кольцо мало")] * 3
    assert [answer.number for answer in written] == [0, 1, 2]
    assert written[0].tokens_out == 2
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["reviews"]["maxItems"] == 2
    assert server.asked[-1]["response_format"]["type"] == "json_object"
    assert len({request["seed"] for request in server.asked}) == 3


def test_openai_answer_that_cannot_be_read_is_kept_as_it_came(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda request: (200, completion('{"reviews": []}'))
    settings = openai_settings(server.url, home=tmp_path, augmentation={"max_candidates": 1.0, "batch_size": 2})
    result = synthesize(settings, OpenAIGenerator(settings.llm, settings.augmentation), n=2)
    assert result.rejected["reason"].tolist() == ["unreadable_answer"]
    assert result.rejected["text"].tolist() == ['{"reviews": []}']


def test_openai_server_that_is_away_can_be_asked_later(server: ChatServer) -> None:
    server.script = lambda request: (503, {"error": {"message": "busy"}})
    settings = openai_settings(server.url)
    with pytest.raises(AnnotatorUnavailableError):
        list(OpenAIGenerator(settings.llm, settings.augmentation).write([request_for()]))


@pytest.mark.slow
def test_transformers_writes_the_same_for_the_same_seed() -> None:
    settings = load_settings(_env_file=None, augmentation={"tokens_per_review": 8})
    generator = TransformersGenerator(settings.llm, settings.augmentation).use(*tiny())
    first, second, other = (next(iter(generator.write([request_for(n)]))) for n in (0, 0, 1))
    assert first.model_dump(exclude={"seconds"}) == second.model_dump(exclude={"seconds"})
    assert (first.texts, first.raw) != (other.texts, other.raw)
    assert first.tokens_in > 20
    assert 0 < first.tokens_out <= 2 * 8 + 32


def test_recorded_candidates_are_handed_out_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "candidates.csv"
    path.write_text(f"category,text\n{CATEGORY},Серьги\n{CATEGORY},Кольцо\nмебель,Стол\n{CATEGORY},Зонт\n", encoding="utf-8")
    generator = RecordedGenerator.load(str(path), TAXONOMY.names)
    assert (generator.available(CATEGORY), generator.available("обувь")) == (3, 0)
    requests = [WritingRequest(category=CATEGORY, number=n, seed=1, n=2) for n in (0, 1)]
    assert [written.texts for written in generator.write(requests)] == [("Серьги", "Кольцо"), ("Зонт",)]


@pytest.mark.case(61)
def test_categories_of_recorded_candidates_may_differ_in_case_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "candidates.csv"
    path.write_text(f"category,text\n{CATEGORY.upper()},Серьги\n {CATEGORY.replace(' ', '  ')} ,Кольцо\n", encoding="utf-8")
    assert RecordedGenerator.load(str(path), TAXONOMY.names).available(CATEGORY) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nСерьги\n", r"c\.csv: candidates need the column\(s\) category"),
        (f"category,text\n{CATEGORY},\n", "row 1: column text"),
    ],
)
def test_unusable_candidates_are_refused_with_file_and_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(content, encoding="utf-8")
    with pytest.raises(AugmentationError, match=message):
        RecordedGenerator.load(str(tmp_path / "c.csv"), TAXONOMY.names)


def test_settings_choose_the_writer(tmp_path: Path) -> None:
    assert isinstance(make_generator(make_settings(tmp_path), TAXONOMY), RecordedGenerator)
    assert make_generator(make_settings(tmp_path, synthetic=None), TAXONOMY) is None
    assert make_generator(make_settings(tmp_path, augmentation={"backend": "none"}), TAXONOMY) is None
    made = make_generator(make_settings(tmp_path, augmentation={"backend": "transformers"}), TAXONOMY)
    assert isinstance(made, TransformersGenerator)


def test_bundled_candidates_are_judged_as_they_were_meant(tmp_path: Path) -> None:
    from reviewclf.labeling.annotators.recorded import RecordedAnnotator

    settings = make_settings(tmp_path)
    generator = make_generator(settings, TAXONOMY)
    assert generator is not None
    assert settings.synthetic_votes is not None
    voter = RecordedAnnotator.load(settings.synthetic_votes, Taxonomy.load(settings.taxonomy).names)
    result = synthesize(settings, generator, n=1000, annotator=voter)
    rules: Any = result.report["rules"]
    assert len(result.kept) > 120
    assert len(result.rejected) > 40
    artefacts = (
        "numbering",
        "heading",
        "quotes",
        "assistant_prefix",
        "prompt_echo",
        "other_script",
        "json_remains",
        "llm_check",
    )
    assert all(rules[name] > 0 for name in artefacts)
    assert not any(vote.label is None for vote in result.votes)
    assert isinstance(result.votes[0], Vote)
