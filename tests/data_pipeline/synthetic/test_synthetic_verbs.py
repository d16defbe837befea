"""Conjugation against forms checked by hand, regular and irregular, down to reported speech."""

from __future__ import annotations

import pytest

from data_pipeline.synthetic.lexicon import words
from data_pipeline.synthetic.verbs import (
    Predicate,
    adnominal,
    asked,
    connect,
    copula,
    finite,
    future,
    honorific,
    past,
    predicate,
    quoted,
    whether,
)  # fmt: skip


def forms_of(base: Predicate) -> list[str]:
    return [
        finite(base), finite(past(base)), finite(base, level="polite"), finite(past(base), level="polite"),
        finite(base, level="formal"),
    ]  # fmt: skip


# 사전형: 현재, 과거, 해요체, 해요체 과거, 합쇼체
FINITE = """
먹다 먹는다 먹었다 먹어요 먹었어요 먹습니다
가다 간다 갔다 가요 갔어요 갑니다
오다 온다 왔다 와요 왔어요 옵니다
서다 선다 섰다 서요 섰어요 섭니다
보내다 보낸다 보냈다 보내요 보냈어요 보냅니다
배우다 배운다 배웠다 배워요 배웠어요 배웁니다
마시다 마신다 마셨다 마셔요 마셨어요 마십니다
보다 본다 보았다 봐요 보았어요 봅니다
주다 준다 주었다 줘요 주었어요 줍니다
되다 된다 되었다 돼요 되었어요 됩니다
쉬다 쉰다 쉬었다 쉬어요 쉬었어요 쉽니다
비다 빈다 비었다 비어요 비었어요 빕니다
켜다 켠다 켰다 켜요 켰어요 켭니다
하다 한다 했다 해요 했어요 합니다
일하다 일한다 일했다 일해요 일했어요 일합니다
돕다 돕는다 도왔다 도와요 도왔어요 돕습니다
줍다 줍는다 주웠다 주워요 주웠어요 줍습니다
굽다 굽는다 구웠다 구워요 구웠어요 굽습니다
입다 입는다 입었다 입어요 입었어요 입습니다
잡다 잡는다 잡았다 잡아요 잡았어요 잡습니다
걷다 걷는다 걸었다 걸어요 걸었어요 걷습니다
듣다 듣는다 들었다 들어요 들었어요 듣습니다
묻다 묻는다 물었다 물어요 물었어요 묻습니다
싣다 싣는다 실었다 실어요 실었어요 싣습니다
받다 받는다 받았다 받아요 받았어요 받습니다
닫다 닫는다 닫았다 닫아요 닫았어요 닫습니다
짓다 짓는다 지었다 지어요 지었어요 짓습니다
낫다 낫는다 나았다 나아요 나았어요 낫습니다
잇다 잇는다 이었다 이어요 이었어요 잇습니다
웃다 웃는다 웃었다 웃어요 웃었어요 웃습니다
씻다 씻는다 씻었다 씻어요 씻었어요 씻습니다
부르다 부른다 불렀다 불러요 불렀어요 부릅니다
기르다 기른다 길렀다 길러요 길렀어요 기릅니다
모르다 모른다 몰랐다 몰라요 몰랐어요 모릅니다
흐르다 흐른다 흘렀다 흘러요 흘렀어요 흐릅니다
따르다 따른다 따랐다 따라요 따랐어요 따릅니다
들르다 들른다 들렀다 들러요 들렀어요 들릅니다
치르다 치른다 치렀다 치러요 치렀어요 치릅니다
쓰다 쓴다 썼다 써요 썼어요 씁니다
끄다 끈다 껐다 꺼요 껐어요 끕니다
모으다 모은다 모았다 모아요 모았어요 모읍니다
잠그다 잠근다 잠갔다 잠가요 잠갔어요 잠급니다
푸다 푼다 펐다 퍼요 펐어요 풉니다
살다 산다 살았다 살아요 살았어요 삽니다
만들다 만든다 만들었다 만들어요 만들었어요 만듭니다
불다 분다 불었다 불어요 불었어요 붑니다
앉다 앉는다 앉았다 앉아요 앉았어요 앉습니다
읽다 읽는다 읽었다 읽어요 읽었어요 읽습니다
놓다 놓는다 놓았다 놓아요 놓았어요 놓습니다
알려&주다 알려&준다 알려&주었다 알려&줘요 알려&주었어요 알려&줍니다
좋다 좋다 좋았다 좋아요 좋았어요 좋습니다
작다 작다 작았다 작아요 작았어요 작습니다
크다 크다 컸다 커요 컸어요 큽니다
길다 길다 길었다 길어요 길었어요 깁니다
멀다 멀다 멀었다 멀어요 멀었어요 멉니다
춥다 춥다 추웠다 추워요 추웠어요 춥습니다
가깝다 가깝다 가까웠다 가까워요 가까웠어요 가깝습니다
고맙다 고맙다 고마웠다 고마워요 고마웠어요 고맙습니다
곱다 곱다 고왔다 고와요 고왔어요 곱습니다
좁다 좁다 좁았다 좁아요 좁았어요 좁습니다
바쁘다 바쁘다 바빴다 바빠요 바빴어요 바쁩니다
예쁘다 예쁘다 예뻤다 예뻐요 예뻤어요 예쁩니다
다르다 다르다 달랐다 달라요 달랐어요 다릅니다
푸르다 푸르다 푸르렀다 푸르러요 푸르렀어요 푸릅니다
빨갛다 빨갛다 빨갰다 빨개요 빨갰어요 빨갛습니다
하얗다 하얗다 하얬다 하얘요 하얬어요 하얗습니다
퍼렇다 퍼렇다 퍼렜다 퍼레요 퍼렜어요 퍼렇습니다
그렇다 그렇다 그랬다 그래요 그랬어요 그렇습니다
유명하다 유명하다 유명했다 유명해요 유명했어요 유명합니다
있다 있다 있었다 있어요 있었어요 있습니다
없다 없다 없었다 없어요 없었어요 없습니다
아니다 아니다 아니었다 아니에요 아니었어요 아닙니다
"""


@pytest.mark.parametrize("line", FINITE.strip().splitlines())
def test_tense_and_level(line: str) -> None:
    citation, *expected = line.split()

    found = forms_of(predicate(citation.replace("&", " ")))

    assert found == [form.replace("&", " ") for form in expected]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("학생", "학생이다 학생이었다 학생이에요 학생이었어요 학생입니다"),
        ("의사", "의사다 의사였다 의사예요 의사였어요 의사입니다"),
        ("서울", "서울이다 서울이었다 서울이에요 서울이었어요 서울입니다"),
    ],
)
def test_copula_follows_its_noun(noun: str, expected: str) -> None:
    assert forms_of(copula(noun)) == expected.split()


# 사전형: 현재, 과거, 해요체, 해요체 과거, 합쇼체
HONORIFIC = """
먹다 드신다 드셨다 드세요 드셨어요 드십니다
마시다 드신다 드셨다 드세요 드셨어요 드십니다
자다 주무신다 주무셨다 주무세요 주무셨어요 주무십니다
있다 계신다 계셨다 계세요 계셨어요 계십니다
말하다 말씀하신다 말씀하셨다 말씀하세요 말씀하셨어요 말씀하십니다
아프다 편찮으시다 편찮으셨다 편찮으세요 편찮으셨어요 편찮으십니다
가다 가신다 가셨다 가세요 가셨어요 가십니다
읽다 읽으신다 읽으셨다 읽으세요 읽으셨어요 읽으십니다
살다 사신다 사셨다 사세요 사셨어요 사십니다
돕다 도우신다 도우셨다 도우세요 도우셨어요 도우십니다
걷다 걸으신다 걸으셨다 걸으세요 걸으셨어요 걸으십니다
짓다 지으신다 지으셨다 지으세요 지으셨어요 지으십니다
기르다 기르신다 기르셨다 기르세요 기르셨어요 기르십니다
쓰다 쓰신다 쓰셨다 쓰세요 쓰셨어요 쓰십니다
하다 하신다 하셨다 하세요 하셨어요 하십니다
바쁘다 바쁘시다 바쁘셨다 바쁘세요 바쁘셨어요 바쁘십니다
젊다 젊으시다 젊으셨다 젊으세요 젊으셨어요 젊으십니다
"""


@pytest.mark.parametrize("line", HONORIFIC.strip().splitlines())
def test_honorific_forms(line: str) -> None:
    citation, *expected = line.split()

    assert forms_of(honorific(predicate(citation))) == expected


def test_copula_honours_its_subject() -> None:
    base = honorific(copula("의사"))

    assert forms_of(base) == ["의사이시다", "의사이셨다", "의사이세요", "의사이셨어요", "의사이십니다"]
    assert (quoted(base), quoted(base, "question")) == ("의사이시라고", "의사이시냐고")


# 사전형: 평서, 의문, 청유, 명령
REPORTED = """
가다 간다고 가느냐고 가자고 가라고
먹다 먹는다고 먹느냐고 먹자고 먹으라고
살다 산다고 사느냐고 살자고 살라고
만들다 만든다고 만드느냐고 만들자고 만들라고
돕다 돕는다고 돕느냐고 돕자고 도우라고
걷다 걷는다고 걷느냐고 걷자고 걸으라고
듣다 듣는다고 듣느냐고 듣자고 들으라고
짓다 짓는다고 짓느냐고 짓자고 지으라고
부르다 부른다고 부르느냐고 부르자고 부르라고
쓰다 쓴다고 쓰느냐고 쓰자고 쓰라고
하다 한다고 하느냐고 하자고 하라고
"""


@pytest.mark.parametrize("line", REPORTED.strip().splitlines())
def test_reported_speech_of_verbs(line: str) -> None:
    citation, *expected = line.split()
    base = predicate(citation)

    found = [quoted(base, "statement"), quoted(base, "question"), quoted(base, "proposal"), quoted(base, "command")]

    assert found == expected


# 사전형: 평서, 의문, -(으)ㄴ지/-는지, -(으)ㄴ가요/-나요, 관형형
REPORTED_STATES = """
크다 크다고 크냐고 큰지 큰가요 큰
작다 작다고 작으냐고 작은지 작은가요 작은
좋다 좋다고 좋으냐고 좋은지 좋은가요 좋은
길다 길다고 기냐고 긴지 긴가요 긴
춥다 춥다고 추우냐고 추운지 추운가요 추운
빨갛다 빨갛다고 빨가냐고 빨간지 빨간가요 빨간
푸르다 푸르다고 푸르냐고 푸른지 푸른가요 푸른
있다 있다고 있느냐고 있는지 있나요 있는
없다 없다고 없느냐고 없는지 없나요 없는
살다 산다고 사느냐고 사는지 사나요 사는
먹다 먹는다고 먹느냐고 먹는지 먹나요 먹는
아니다 아니라고 아니냐고 아닌지 아닌가요 아닌
"""


@pytest.mark.parametrize("line", REPORTED_STATES.strip().splitlines())
def test_reported_and_adnominal_forms(line: str) -> None:
    citation, *expected = line.split()
    base = predicate(citation)

    assert [quoted(base), quoted(base, "question"), whether(base), asked(base), adnominal(base)] == expected


@pytest.mark.parametrize(
    ("base", "statement", "question"),
    [
        (copula("학생"), "학생이라고", "학생이냐고"),
        (copula("의사"), "의사라고", "의사냐고"),
        (copula("서울"), "서울이라고", "서울이냐고"),
        (past(predicate("먹다")), "먹었다고", "먹었느냐고"),
        (past(predicate("돕다")), "도왔다고", "도왔느냐고"),
        (past(copula("의사")), "의사였다고", "의사였느냐고"),
        (past(copula("학생")), "학생이었다고", "학생이었느냐고"),
        (future(predicate("걷다")), "걷겠다고", "걷겠느냐고"),
        (future(predicate("만들다")), "만들겠다고", "만들겠느냐고"),
        (honorific(predicate("살다")), "사신다고", "사시느냐고"),
        (honorific(predicate("먹다")), "드신다고", "드시느냐고"),
        (past(honorific(predicate("가다"))), "가셨다고", "가셨느냐고"),
    ],
)
def test_reported_speech_of_nouns_tenses_and_honorifics(base: Predicate, statement: str, question: str) -> None:
    assert (quoted(base), quoted(base, "question")) == (statement, question)


@pytest.mark.parametrize(
    "expected",
    words(
        """
        살다+(으)면=살면 살다+(으)니=사니 살다+(으)ㄹ=살 살다+(으)ㄴ=산 살다+(으)려고=살려고 살다+(으)며=살며
        살다+(으)시=사시 살다+네요=사네요 살다+지만=살지만 먹다+(으)면=먹으면 가다+(으)면=가면 가다+(으)ㄹ=갈
        먹다+(으)ㄹ=먹을 돕다+(으)면=도우면 돕다+(으)ㄴ=도운 걷다+(으)면=걸으면 걷다+(으)며=걸으며
        짓다+(으)면=지으면 짓다+(으)ㄴ=지은 빨갛다+(으)면=빨가면 빨갛다+(으)ㄴ=빨간 좋다+(으)면=좋으면
        부르다+(으)면=부르면 부르다+아/어서=불러서 따르다+아/어서=따라서 쓰다+아/어서=써서 듣다+아/어서=들어서
        눕다+아/어서=누워서 하다+아/어서=해서 마시다+아/어서=마셔서 만들다+(으)면=만들면 만들다+(으)므로=만들므로
        길다+아/어서=길어서 기르다+고=기르고 기르다+(으)며=기르며 푸르다+아/어서=푸르러서 놓다+(으)며=놓으며
        """
    ),
)
def test_connective_endings(expected: str) -> None:
    word_and_ending, _, form = expected.partition("=")
    word, _, ending = word_and_ending.partition("+")

    assert connect(predicate(word), ending) == form


def test_state_cannot_be_proposed_or_ordered() -> None:
    with pytest.raises(ValueError, match="예쁘다: a proposal needs a verb, this is of kind 'adjective'"):
        quoted(predicate("예쁘다"), "proposal")


def test_only_dictionary_forms_name_a_predicate() -> None:
    with pytest.raises(ValueError, match="'먹어': not a dictionary form"):
        predicate("먹어")
