"""Peer finders: which list counts, what a file must look like, and what is taken from a model's answer and from AWS's refusals."""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quant_resources.peers import (
    BedrockPeers,
    FinderBusy,
    Found,
    NoAnswer,
    PeerFinderError,
    TablePeers,
    open_peer_finder,
    question,
    read_answer,
    split_known,
)
from quant_resources.settings import Settings

TODAY = dt.date(2024, 6, 3)
KNOWN = {"AAPL": "Apple", "GOOG": "Google", "IBM": "", "MSFT": 'Micro"soft\nCorp'}
EVERYBODY = dict.fromkeys(("AAPL", "GOOG", "IBM", "MSFT", "DELL", "HPQ", "GOOGL", "KO", "PEP"), "")
MODEL = "amazon.nova-lite-v1:0"


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def yours(tmp_path: Path) -> Callable[[str], TablePeers]:
    def make(text: str) -> TablePeers:
        path = tmp_path / "peers.csv"
        path.write_text(text, encoding="utf-8")
        return TablePeers(path, today=TODAY)

    return make


def test_the_source_comes_before_your_file_and_your_file_before_the_bundled_list(
    yours: Callable[[str], TablePeers],
) -> None:
    finder = yours('symbol,peers,as_of\nAAPL,"DELL,HPQ",2020-01-02\nIBM,HPQ,2020-01-02\n')
    finder = finder.with_own_lists({"IBM": "MSFT, goog", "AAPL": " ", "GOOG": ""}, dt.date(2013, 3, 1))
    assert finder.find("IBM", EVERYBODY) == Found(("MSFT", "GOOG"), (), dt.date(2013, 3, 1))
    assert finder.find("AAPL", EVERYBODY) == Found(("DELL", "HPQ"), (), dt.date(2020, 1, 2))
    bundled = TablePeers().find("KO", EVERYBODY)
    assert bundled.peers == ("PEP",)
    assert bundled.rejected == ("KDP", "MNST")
    with pytest.raises(NoAnswer, match=r"no list names competitors of ZZZ.*QUANT_PEERS_FILE"):
        finder.find("ZZZ", EVERYBODY)


def test_a_symbol_may_have_lists_of_several_days(yours: Callable[[str], TablePeers]) -> None:
    finder = yours('\ufeffas_of, symbol, peers\n2021-05-03,aapl,"hpq"\n\n2019-05-03,AAPL,DELL\n,IBM,MSFT\n')
    assert [(f.as_of.year, f.peers) for f in finder.every("AAPL", EVERYBODY)] == [
        (2019, ("DELL",)),
        (2021, ("HPQ",)),
    ]
    assert finder.find("AAPL", EVERYBODY).peers == ("HPQ",)
    assert finder.find("IBM", EVERYBODY).as_of == TODAY


def test_what_is_not_known_and_the_symbol_itself_are_set_aside() -> None:
    assert split_known(["MSFT", "XYZ", "AAPL", "MSFT", "GOOG"], "AAPL", KNOWN) == (
        ("MSFT", "GOOG"),
        ("XYZ", "AAPL"),
    )


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("", 1, "the file is empty"),
        ("ticker,peers\n", 1, "the columns are ticker, peers; needs symbol, peers"),
        ("symbol,peers,when\n", 1, "the columns are symbol, peers, when"),
        ("symbol,peers\nAAPL,GOOG,MSFT\n", 2, "3 cells where the header has 2; put quotes around"),
        ("symbol,peers\n\nAAPL,\n", 3, "peers of AAPL is empty"),
        ('symbol,peers\nAAPL,"GOOG,Alphabet Inc"\n', 2, "'ALPHABET INC' is not a ticker"),
        ("symbol,peers\n3M,MMM\n", 2, "'3M' is not a ticker"),
        ('symbol,peers\nAAPL,"GOOG,AAPL"\n', 2, "AAPL is among its own peers"),
        ("symbol,peers,as_of\nAAPL,GOOG,03.06.2024\n", 2, "as_of = '03.06.2024' is not a date"),
        ("symbol,peers,as_of\nAAPL,GOOG,2024-06-04\n", 2, "as_of = 2024-06-04 lies ahead of today"),
        ("symbol,peers\nAAPL,GOOG\nAAPL,MSFT\n", 3, "AAPL has a list of 2024-06-03 already"),
        ('symbol,peers\nAAPL,"GOOG\n', 2, "malformed CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_rule(
    yours: Callable[[str], TablePeers], tmp_path: Path, text: str, line: int, rule: str
) -> None:
    with pytest.raises(PeerFinderError) as raised:
        yours(text).find("AAPL", KNOWN)
    assert f"{tmp_path / 'peers.csv'}:{line}: {rule}" in str(raised.value)


def test_a_file_that_is_no_text_or_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peers.csv"
    path.write_bytes(b"symbol,peers\n\xff\xfe,GOOG\n")
    for finder in (TablePeers(path), TablePeers(tmp_path / "nowhere.csv")):
        with pytest.raises(PeerFinderError, match=r"cannot be read: .*QUANT_PEERS_FILE is a CSV"):
            finder.find("AAPL", KNOWN)


def test_the_bundled_list_is_in_order() -> None:
    # Reading it judges every row: tickers, days, nobody twice.
    bundled = TablePeers(today=TODAY)._bundled
    assert len(bundled) >= 60
    for symbol, lists in bundled.items():
        (only,) = lists
        assert 3 <= len(set(only.named)) <= 6, symbol
        assert len(set(only.named)) == len(only.named), symbol
    assert list(bundled) == sorted(bundled)


def test_the_settings_choose_the_finder(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("symbol,peers\nAAPL,IBM\n")
    table = open_peer_finder(Settings(peers_file=file))
    assert (table.name, table.find("AAPL", KNOWN).peers) == ("table", ("IBM",))
    bedrock = open_peer_finder(Settings(peer_finder="bedrock", bedrock_model_id="some.model"))
    assert (bedrock.name, bedrock.model_id) == ("bedrock", "some.model")  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "answer",
    [
        '{"competitors": ["MSFT", " goog "]}',
        ' \n{"competitors":["MSFT","GOOG"]}\n',
        '```json\n{"competitors": ["MSFT", "GOOG"]}\n```',
        '```\n{\n "competitors": ["MSFT",\n "GOOG"]}\n```\n',
    ],
)
def test_an_object_is_read_alone_or_in_a_fence(answer: str) -> None:
    assert read_answer(answer) == ("MSFT", "GOOG")


def test_an_empty_list_is_an_answer_and_foreign_tickers_are_read() -> None:
    assert read_answer('{"competitors": []}') == ()
    assert read_answer('{"competitors": ["005930.KS", "NYSE:KO", "N/A"]}') == ("005930.KS", "NYSE:KO", "N/A")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "not a JSON object"),
        ("MSFT, GOOG", "not a JSON object: it begins with"),
        ('Sure! {"competitors": ["MSFT"]}', "not a JSON object"),
        ('{"competitors": ["MSFT"]} Hope this helps.', "not a JSON object"),
        ('```json\n{"competitors": ["MSFT"]}\n``` and ```json\n{}\n```', "not a JSON object"),
        ('{"competitors": ["MSFT", "GO', "not a JSON object"),  # cut off by the limit of tokens
        ('["MSFT"]', "not of the form"),
        ('{"Competitors": ["MSFT"]}', "not of the form"),
        ('{"competitors": ["MSFT"], "note": "x"}', "not of the form"),
        ('{"competitors": "MSFT"}', "not of the form"),
        ('{"competitors": [{"ticker": "MSFT"}]}', "is not a ticker"),
        ('{"competitors": ["MSFT", null]}', "null is not a ticker"),
        ('{"competitors": ["MSFT,GOOG"]}', "is not a ticker"),
        ('{"competitors": ["The Coca-Cola Company of Atlanta"]}', "is not a ticker"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_anything_else_is_refused_with_its_beginning(answer: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        read_answer(answer)
    assert len(str(raised.value)) < 600


@settings(max_examples=200, deadline=None)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
@example('{"competitors": ["MSFT\\n"]}')
def test_no_answer_gives_anything_but_tickers_or_a_refusal(answer: str) -> None:
    try:
        named = read_answer(answer)
    except ValueError:
        return
    assert all(ticker == ticker.strip().upper() and "," not in ticker for ticker in named)


# ---------------------------------------------------------------------------------------------------------- Bedrock


@pytest.fixture(scope="module")
def client() -> Any:
    return boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLEEXAMPLE",
        aws_secret_access_key="wJalrXUtnFEMI/K7MDENG",
    )


@pytest.fixture
def stub(client: Any) -> Iterator[Stubber]:
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def finder(client: Any, stub: Stubber, pauses: list[float]) -> BedrockPeers:
    return BedrockPeers(MODEL, client, attempts=4, pause=pauses.append)


def answers(stub: Stubber, text: str, asked: str | None = None, stop: str = "end_turn") -> None:
    """The next answer; where `asked` is given, exactly this request is expected."""
    response = {
        "output": {"message": {"role": "assistant", "content": [{"text": text}] if text else []}},
        "stopReason": stop,
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "metrics": {"latencyMs": 1},
    }
    expected = {
        "modelId": MODEL,
        "messages": [{"role": "user", "content": [{"text": asked}]}],
        "inferenceConfig": {"maxTokens": 300, "temperature": 0.0},
    }
    stub.add_response("converse", response, expected if asked else None)


def test_one_question_one_answer(finder: BedrockPeers, stub: Stubber) -> None:
    prompt = question("AAPL", "Apple")
    said = '{"competitors": ["MSFT", "SSNLF", "AAPL", "GOOG"]}'
    answers(stub, said, prompt)
    found = finder.find("AAPL", KNOWN)
    assert found.peers == ("MSFT", "GOOG")
    assert found.rejected == ("SSNLF", "AAPL")
    assert (found.model_id, found.prompt, found.answer) == (MODEL, prompt, said)
    assert abs(found.as_of - dt.datetime.now(dt.UTC).date()) <= dt.timedelta(days=1)


def test_the_question_names_company_ticker_and_rule() -> None:
    asked = question("AAPL", "Apple")
    for part in ('"Apple"', "AAPL", "stock exchange in the United States", '{"competitors": ["TICKER"'):
        assert part in asked
    assert "the company with the ticker IBM" in question("IBM", "")
    # A name is data: its quotes and line breaks do not end the sentence that it stands in.
    assert '"Micro\\"soft\\nCorp" (ticker MSFT)' in question("MSFT", KNOWN["MSFT"])


def test_an_answer_that_cannot_be_read_is_asked_for_once_more(finder: BedrockPeers, stub: Stubber) -> None:
    first = question("AAPL", "Apple")
    again = (
        f'{first}\nAn earlier answer could not be used: it is not a JSON object: it begins with "Microsoft.". '
        "Answer with the JSON object alone."
    )
    answers(stub, "Microsoft.", first)
    answers(stub, '```json\n{"competitors": ["MSFT"]}\n```', again)
    found = finder.find("AAPL", KNOWN)
    assert found.peers == ("MSFT",)
    assert found.prompt == again


def test_after_two_unreadable_answers_the_symbol_has_none(finder: BedrockPeers, stub: Stubber) -> None:
    answers(stub, '{"competitors": ["MSFT", "GO', stop="max_tokens")
    answers(stub, "")
    with pytest.raises(
        NoAnswer, match="asked twice for the competitors of AAPL and gave no list: it is not a JSON"
    ):
        finder.find("AAPL", KNOWN)


def test_throttling_is_waited_out_with_growing_uneven_pauses(
    finder: BedrockPeers, stub: Stubber, pauses: list[float]
) -> None:
    for code in ("ThrottlingException", "ModelNotReadyException", "ServiceUnavailableException"):
        stub.add_client_error("converse", code, "Too many requests", 429)
    answers(stub, '{"competitors": ["MSFT"]}')
    assert finder.find("AAPL", KNOWN).peers == ("MSFT",)
    assert len(pauses) == 3
    for number, pause in enumerate(pauses):
        assert 0.5 * 2**number <= pause <= 1.5 * 2**number
    for _ in range(4):
        stub.add_client_error("converse", "ThrottlingException", "Too many requests", 429)
    with pytest.raises(FinderBusy, match=r"too busy for the model amazon\.nova.*goes on where it stopped"):
        finder.find("AAPL", KNOWN)
    assert len(pauses) == 6


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
            "does not let this caller use the model amazon.nova-lite-v1:0 (You don't have access",
        ),
        ("UnrecognizedClientException", "The security token is invalid", "does not take the credentials"),
        ("ExpiredTokenException", "The security token is over", "Sign in again"),
        (
            "ResourceNotFoundException",
            "Could not resolve the foundation model",
            "cannot use QUANT_BEDROCK_MODEL_ID=amazon.nova-lite-v1:0 in this region",
        ),
        ("ValidationException", "The provided model identifier is invalid.", "Name a text model"),
        (
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn't supported.",
            "inference profile",
        ),
        ("ValidationException", "Malformed input request", "Bedrock refused the question"),
    ],
)
def test_what_aws_refuses_is_told_in_a_sentence_and_not_tried_again(
    finder: BedrockPeers, stub: Stubber, pauses: list[float], code: str, message: str, told: str
) -> None:
    secret = "\nThe Canonical String for this request should have been 'x-amz-security-token:FQoGZXIvYXdzEJr'"
    stub.add_client_error("converse", code, message + secret, 400)
    with pytest.raises(PeerFinderError) as raised:
        finder.find("AAPL", KNOWN)
    assert told in str(raised.value)
    assert not isinstance(raised.value, FinderBusy)
    assert pauses == []
    # What AWS quotes of a signed request appears neither in the message nor in a chained error.
    assert "FQoGZXIvYXdzEJr" not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No AWS credentials, region or profile, and no metadata service that could give some."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_without_region_or_credentials_it_says_which_is_missing(nobody: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerFinderError, match=r"no AWS region is set\. Set AWS_REGION"):
        BedrockPeers(MODEL).find("AAPL", KNOWN)
    nobody.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(PeerFinderError, match="there are no complete AWS credentials"):
        BedrockPeers(MODEL).find("AAPL", KNOWN)
    nobody.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(PeerFinderError, match=r"nobodys.*Set AWS_PROFILE to a profile"):
        BedrockPeers(MODEL).find("AAPL", KNOWN)


def test_a_service_that_nobody_answers_for_is_busy(nobody: pytest.MonkeyPatch) -> None:
    nobody.setenv("AWS_REGION", "us-east-1")
    nobody.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLEEXAMPLE")
    nobody.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    nobody.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nothing listens
    waited: list[float] = []
    with pytest.raises(FinderBusy, match="Bedrock cannot be reached"):
        BedrockPeers(MODEL, attempts=2, pause=waited.append).find("AAPL", KNOWN)
    assert len(waited) == 1
