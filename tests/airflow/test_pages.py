"""The pages of a real API server, as users with and without rights see them."""

import dataclasses
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from live_airflow import LiveAirflow
from retro_airflow.pages.app import app
from stored_dataset import WORDS, make_plan, write_dataset

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, plan_to_json

USERS = {"ann": "admin", "vic": "viewer"}
HOSTILE = ("<script>alert(1)</script>", "../../etc/passwd", "%2e%2e", "\u202egnp", "a\x00b", "a\nb", "x" * 3000)


@dataclasses.dataclass(frozen=True)
class Server:
    """``news``: address of a dataset with two versions of three shards."""

    root: Path
    url: str
    news: str
    tokens: dict[str, str]

    def get(self, path: str, user: str | None = "vic", **headers: str) -> httpx.Response:
        if user:
            headers["Authorization"] = f"Bearer {self.tokens[user]}"
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=60)

    def post(self, path: str, user: str | None, **headers: str) -> httpx.Response:
        if user:
            headers["Authorization"] = f"Bearer {self.tokens[user]}"
        return httpx.post(f"{self.url}{path}", headers=headers, timeout=60)

    def runs(self, dag: str) -> list[dict[str, Any]]:
        return list(self.get(f"/api/v2/dags/{dag}/dagRuns", "ann").json()["dag_runs"])

    def text(self, path: str, status: int = 200) -> str:
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("airflow")
    root = home / "datasets"
    write_dataset(root, "news", versions=2)
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(USERS, "secret")))
    environment = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "RETRO_ROOT": str(root),
    }
    airflow = LiveAirflow(home, environment)
    try:
        airflow.start_api_server()
        airflow.serialize_dags()
        tokens = {name: airflow.token(name, "secret") for name in USERS}
        yield Server(root, airflow.url, f"/retro/{paths.root_key(str(root))}/news", tokens)
    finally:
        airflow.stop()


def addresses(news: str) -> list[str]:
    """An address of every page that only shows something, so that none is forgotten."""
    root, dataset = news.split("/")[2:]
    values = {"root": root, "dataset": dataset, "kind": "versions", "name": "2"}
    paths_of_routes = {str(getattr(route, "path", "")) for route in app.routes} - {""}
    found = [
        path.format(**values)
        for path in paths_of_routes
        if not any(part in path for part in ("/static/", "/confirm/", "/started/"))
    ]
    assert len(found) >= 7
    return [f"/retro{path}" + ("?from=1&to=2" if path.endswith("/diff") else "") for path in found]


def test_every_page_needs_a_user_of_airflow(server: Server) -> None:
    for address in addresses(server.news):
        assert server.get(address, user=None).status_code == 401, address
        assert server.get(address, None, Authorization="Bearer forged").status_code == 403, address
        answer = server.get(address)
        assert answer.status_code == 200, (address, answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"], address
        assert answer.headers["x-content-type-options"] == "nosniff", address


def test_the_session_of_the_browser_is_enough(server: Server) -> None:
    answer = httpx.get(f"{server.url}/retro/", cookies={"_token": server.tokens["vic"]})
    assert answer.status_code == 200
    assert "news" in answer.text


def test_the_list_shows_version_size_and_recall(server: Server) -> None:
    text = server.text("/retro/")
    for expected in (">news</a>", ">2</td>", "1.5 MB", "90.0 %", "run-2"):
        assert expected in text, expected


def test_the_tiles_show_the_current_version_after_a_rollback(server: Server) -> None:
    write_dataset(server.root, "rolled", versions=2)
    series = Path(paths.current_uri(str(server.root), "rolled"))
    newest = json.loads(series.read_text())
    (first,) = newest.pop("history")
    first["counts"]["chunks"] = 17
    series.write_text(json.dumps({**first, "last": newest.pop("last"), "history": [newest]}))
    text = server.text(f"{server.news.removesuffix('news')}rolled")
    assert '<span class="muted">Chunks</span><b>17</b>' in text


def test_versions_are_listed_and_compared(server: Server) -> None:
    text = server.text(server.news)
    assert re.search(r'versions/2">2</a> <span class="state done">current', text)
    assert "<polyline" in text
    changed = server.text(f"{server.news}/diff?from=1&to=2")
    # The first shard has the same source in both versions.
    assert "2 changed" in changed
    assert "<li>0001_news</li>" in changed
    assert "<li>0000_news</li>" not in changed


def test_states_tell_what_a_run_still_lacks(server: Server) -> None:
    plan = make_plan(server.root, "night", 2, "new")
    uri = Path(paths.plan_uri(plan.root, "night", "manual__1"))
    uri.parent.mkdir(parents=True)
    uri.write_text(plan_to_json(plan))
    done = Path(paths.report_uri(plan, "tokenize-and-chunk", "val_0"))
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    begun = Path(paths.embeddings_uri(plan, "val_0"))
    begun.parent.mkdir(parents=True)
    begun.write_text("")
    address = server.news.replace("news", "night")
    text = server.text(f"{address}/runs/manual__1/shards?search=VAL")
    row = text[text.index("<tbody>") : text.index("</tbody>")]
    assert re.findall(r'class="state ?(\w*)"', row) == ["done", "started", "", ""]
    assert "0000_news" not in row
    assert "not yet" in server.text(address, 200).replace("Nothing is published yet", "not yet")


def test_a_chunk_lies_beside_its_neighbours(server: Server) -> None:
    address = f"{server.news}/versions/2/neighbours"
    text = html.unescape(server.text(f"{address}?shard=0001_news&chunk=2"))
    assert "gamma gamma" in text
    # Ids count over the shards: 6 + 2 is chunk 2 of the second training shard, 0 is chunk 0 of the first.
    assert re.findall(r">(\d{4}_news), chunk (\d)</a>", text) == [("0001_news", "2"), ("0000_news", "0")]
    assert [*re.findall(r"distance (0\.\d+)", text)] == ["0.500", "0.750"]
    assert "same document" in text
    assert "/corpus/0.jsonl" in text
    by_document = html.unescape(server.text(f"{address}?shard=0001_news&chunk=&document=1"))
    assert "chunk 2 of 6" in by_document
    # A row that is not full has fewer neighbours.
    assert len(re.findall("squared L2 distance", server.text(f"{address}?shard=val_0&chunk=0"))) == 1


def test_bad_records_are_shown_with_their_reason(server: Server) -> None:
    (plan,) = write_dataset(server.root, "spoiled")
    address = f"{server.news.replace('news', 'spoiled')}/versions/1"
    assert "has no bad records" in server.text(f"{address}/bad-records?shard=0000_news")
    records = [
        {"source": "/corpus/0.jsonl", "line": n, "reason": "no key 'text'", "content": f"<b>{n}</b>"} for n in range(60)
    ]
    quarantine = Path(paths.quarantine_uri(paths.chunks_files(plan, "0000_news")["chunks"]))
    quarantine.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = server.text(f"{address}/bad-records?shard=0000_news")
    assert "The first 50 are shown" in text
    assert "/corpus/0.jsonl, line 49" in html.unescape(text)
    assert "&lt;b&gt;49&lt;/b&gt;" in text
    assert f"{address}/bad-records?shard=0000_news" in server.text(f"{address}/shards")
    quarantine.write_text(json.dumps({**records[0], "content": "x" * 2**20}) + "\n")
    assert "is longer than 1,048,576 bytes" in server.text(f"{address}/bad-records?shard=0000_news", 500)
    quarantine.write_text("{}\n")
    assert "should be an object with" in html.unescape(server.text(f"{address}/bad-records?shard=0000_news", 500))


def test_records_that_belong_to_no_shard_and_leaks_of_validation_are_shown(server: Server) -> None:
    page = server.text(f"{server.news}/versions/2")
    assert "bad records 7, documents left out 0. First bad record: a.jsonl, line 4: bad JSON" in page
    rows = {split: page.partition(f"<tr><th>{split}</th>")[2].partition("</tr>")[0] for split in ("train", "val")}
    assert ("25.0 %" in rows["train"], "25.0 %" in rows["val"]) == (False, True), "training rows leak nothing"


def test_the_worst_rows_are_one_click_away(server: Server) -> None:
    version = html.unescape(server.text(f"{server.news}/versions/2"))
    (link,) = re.findall(r'href="([^"]+)">0001_news, 2 \(25.0 %\)', version)
    assert "chunk 2 of 6" in server.text(link)
    assert version.count("<span>none</span>") == 5, "the card of the validation rows names none"


def test_texts_of_the_corpus_are_shown_as_text(server: Server) -> None:
    text = server.text(f"{server.news}/versions/2/neighbours?shard=0000_news")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert "\\u202eevil" in text
    card = server.get(f"{server.news}/versions/2/card")
    assert card.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


MEGABYTE = "\u202e\x07<script>alert(1)</script>" + "a b " * 2**18


def write_megabytes(plan: Plan) -> None:
    """Put MEGABYTE wherever files of a version hold text that a page shows."""
    version, run = Path(paths.version_plan_uri(plan)), Path(paths.plan_uri(plan.root, plan.dataset, "run-2"))
    tokenizer = Path(paths.tokenizer_uri(str(run)))
    vocabulary = json.loads(json.loads(tokenizer.read_text())["tokenizer"])
    vocabulary["model"]["vocab"] = {MEGABYTE if word == "gamma" else word: n for n, word in enumerate(WORDS)}
    tokenizer.write_text(json.dumps({"tokenizer": json.dumps(vocabulary)}))
    for file in (version, run):
        document = json.loads(file.read_text())
        for shard in document["shards"]:
            shard["sources"][0]["uri"] = MEGABYTE
        document["as_of"], document["parameters"]["tokenizer"] = MEGABYTE, MEGABYTE[:9000]
        file.write_text(json.dumps(document))
    card = json.loads(Path(paths.card_uri(plan, "json")).read_text())
    card["index_type"]["type"] = MEGABYTE
    card["quality"]["train"]["categories"] = {MEGABYTE: card["quality"]["train"]["categories"]["news"]}
    Path(paths.card_uri(plan, "json")).write_text(json.dumps(card))
    current = Path(paths.current_uri(plan.root, plan.dataset))
    current.write_text(json.dumps({**json.loads(current.read_text()), "as_of": MEGABYTE}))
    record = {"source": "/corpus/0.jsonl", "line": 1, "reason": MEGABYTE[:400_000], "content": MEGABYTE[:400_000]}
    quarantine = paths.quarantine_uri(paths.chunks_files(plan, "0000_news")["chunks"])
    Path(quarantine).write_text(json.dumps(record) + "\n")


def test_texts_of_a_megabyte_are_cut_and_shown_as_text(server: Server) -> None:
    write_megabytes(write_dataset(server.root, "huge", versions=2)[-1])
    address = server.news.replace("news", "huge")
    version = f"{address}/versions/2"
    chunk = f"{version}/neighbours?shard=0001_news&chunk=2"
    bad_records = f"{version}/bad-records?shard=0000_news"
    shards, runs = f"{version}/shards", f"{address}/runs/run-2"
    for page in (address, f"{address}/diff?from=1&to=2", version, runs, shards, chunk, bad_records):
        answer = server.get(page)
        assert answer.status_code == 200, (page, answer.text[:2000])
        assert len(answer.content) < 500_000, page
        assert "<script>alert" not in answer.text, page
        assert "\\u202e\\u0007&lt;script&gt;alert(1)&lt;/script&gt;a b a b" in answer.text, page
        assert "\u202e" not in answer.text, page
    assert "1,048,603 characters)" in server.text(version)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_are_refused(server: Server, text: str) -> None:
    hostile = quote(text, safe="")
    for address in (
        f"{server.news[: -len('news')]}{hostile}",
        f"{server.news}/versions/{hostile}",
        f"{server.news}/runs/{hostile}",
        f"{server.news}/versions/2/neighbours?shard={hostile}",
        f"{server.news}/versions/2/neighbours?chunk={hostile}",
        f"{server.news}/versions/2/shards?page={hostile}",
        f"{server.news}/diff?from={hostile}&to=2",
        f"/retro/{hostile}/news",
        f"/retro/static/{hostile}",
    ):
        answer = server.get(address)
        assert answer.status_code == 404, (address, answer.text)
        assert "<script>alert" not in answer.text
        assert "root:" not in answer.text
    search = server.get(f"{server.news}/versions/2/shards?search={hostile}")
    assert search.status_code == (404 if len(text) > 200 else 200)
    assert "<script>alert" not in search.text


def test_files_elsewhere_are_not_read(server: Server, tmp_path: Path) -> None:
    """Neither through a path in `current.json` nor through a link in the dataset's folder."""
    secret = tmp_path / "plan.json"
    secret.write_text(plan_to_json(make_plan(tmp_path, "d", 2, "secret-content")))
    current = json.loads(Path(paths.current_uri(str(server.root), "news")).read_text())
    for number, path in enumerate((str(secret), f"../../../../{secret}", "versions/../../../x", "linked/plan.json")):
        name = f"crafted{number}"
        folder = server.root / name
        folder.mkdir()
        (folder / "linked").symlink_to(tmp_path)
        (folder / "current.json").write_text(json.dumps({**current, "history": [], "plan": path}))
        answer = server.get(f"{server.news.replace('news', name)}/versions/2/shards")
        assert answer.status_code == 404, answer.text
        assert "secret-content" not in answer.text
    assert "crafted0" in server.text("/retro/")


def test_a_damaged_dataset_does_not_hide_the_others(server: Server) -> None:
    folder = server.root / "broken"
    folder.mkdir()
    (folder / "current.json").write_text('{"version": "<script>alert(1)</script>"')
    text = server.text("/retro/")
    assert ">news</a>" in text
    assert "is not JSON" in text
    assert "<script>alert" not in text


@pytest.mark.parametrize("content", ["[]", "{}", '{"quality": 3}', "{", "\x00"])
def test_a_damaged_card_is_an_error_that_names_the_remedy(server: Server, content: str) -> None:
    (plan,) = write_dataset(server.root, "worn")
    Path(paths.card_uri(plan, "json")).write_text(content)
    address = server.news.replace("news", "worn")
    text = server.text(f"{address}/versions/1", 500)
    assert "This page cannot be shown" in text
    assert "retro-ops describe" in text
    assert "Traceback" not in text
    assert server.get(address).status_code == 200


ACTIONS = ("rollback?version=1", "repair?shard=0000_news&shard=val_0", "prune?keep=3")


@pytest.mark.parametrize("action", ACTIONS)
def test_buttons_need_the_right_to_trigger_their_dag(server: Server, action: str) -> None:
    address = f"{server.news}/confirm/{action}"
    for user, status in ((None, 401), ("vic", 403), ("ann", 200)):
        assert server.get(address, user).status_code == status
    for user, status in ((None, 401), ("vic", 403)):
        assert server.post(address, user).status_code == status
    other_site = server.post(address, "ann", Origin="https://evil.example")
    assert other_site.status_code == 403
    assert "another site" in other_site.text
    assert server.post(address, "ann", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert server.runs(f"retro_{action.partition('?')[0]}") == []


def test_only_users_with_the_right_see_the_buttons(server: Server) -> None:
    for path, label in (("", "Roll back…"), ("", "Preview what"), ("/versions/2/shards", "Repair the chosen")):
        assert label in server.get(f"{server.news}{path}", "ann").text
        assert label not in server.get(f"{server.news}{path}", "vic").text


def test_a_button_triggers_its_dag_after_a_question(server: Server) -> None:
    address = f"{server.news}/confirm/rollback?version=1"
    asked = server.get(address, "ann").text
    assert "Make version 1 of news the current one, instead of version 2?" in asked
    assert server.runs("retro_rollback") == []
    answer = server.post(address, "ann", Origin=server.url)
    assert answer.status_code == 303
    (run,) = server.runs("retro_rollback")
    assert run["conf"] == {"root": str(server.root), "dataset": "news", "version": 1}
    assert (run["triggering_user_name"], run["state"]) == ("ann", "queued")
    assert html.escape(run["dag_run_id"]) in server.text(answer.headers["location"])
    server.post(f"{server.news}/confirm/repair?shard=val_0", "ann")
    (repair,) = server.runs("retro_repair")
    assert repair["conf"]["shards"] == ["val_0"]


@pytest.mark.parametrize("query", ["rollback?version=7", "rollback", "repair?shard=../x", "prune?keep=0", "delete"])
def test_actions_that_do_not_exist_are_not_found(server: Server, query: str) -> None:
    assert server.get(f"{server.news}/confirm/{query}", "ann").status_code == 404
    assert server.post(f"{server.news}/confirm/{query}", "ann").status_code == 404
