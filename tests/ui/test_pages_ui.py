"""In the browser: the pages, within Airflow's frame and without it."""

import re
from pathlib import Path

import pytest
from demo_stack import Demo
from playwright.sync_api import Browser, Page, expect

SIZES = {"desktop": (1400, 900), "phone": (390, 844)}
DARK, LIGHT = "rgb(13, 13, 15)", "rgb(255, 255, 255)"
DEMO_RUN = re.compile("^demo-")
FRAME = 'iframe[title="RETRO"]'


@pytest.fixture
def addresses(page: Page, demo: Demo) -> dict[str, str]:
    """Addresses of the pages of the demo's dataset, by name."""
    page.goto(f"{demo.ui}/retro/")
    page.get_by_role("link", name="demo", exact=True).click()
    dataset = page.url
    version = f"{dataset}/versions/1"
    return {
        "list": f"{demo.ui}/retro/",
        "dataset": dataset,
        "version": version,
        "shards": f"{version}/shards",
        "chunks": f"{version}/neighbours?shard=val_docs",
        "neighbours": f"{version}/neighbours?shard=val_docs&chunk=5",
        "comparison": f"{dataset}/diff?from=1&to=1",
        "bad-records": f"{version}/bad-records?shard=val_docs",
        "repair": f"{dataset}/confirm/repair?shard=val_docs",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_the_screen(browser: Browser, addresses: dict[str, str], screenshots: Path, scheme: str) -> None:
    for size, (width, height) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        errors: list[str] = []
        page.on("console", lambda message, errors=errors: errors.append(message.text))  # type: ignore[misc]
        for name, address in addresses.items():
            page.goto(address)
            expect(page.get_by_role("heading").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, size)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                DARK if scheme == "dark" else LIGHT
            )
            page.screenshot(path=screenshots / f"page-{name}-{size}-{scheme}.png")
        assert errors == []
        page.close()


def test_neighbours_are_read_beside_their_chunk(page: Page, addresses: dict[str, str]) -> None:
    page.goto(addresses["chunks"])
    page.get_by_role("link", name="chunk 5", exact=True).click()
    expect(page.get_by_text("distance 0.")).to_have_count(4)
    assert page.locator("mark").count() > 0
    page.get_by_label("Chunk", exact=True).fill("7")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("chunk 7 of")).to_be_visible()


def test_a_repair_is_eight_clicks_from_the_list_of_dags(page: Page, demo: Demo) -> None:
    """By way of a version and of a chunk beside its neighbours. The ninth click would start the repair."""
    page.goto(f"{demo.ui}/dags")
    page.get_by_role("link", name="RETRO", exact=True).click()
    frame = page.frame_locator(FRAME)
    frame.get_by_role("link", name="demo", exact=True).click()
    frame.get_by_role("link", name="1", exact=True).first.click()
    expect(frame.get_by_role("link", name="Dataset card")).to_be_visible()
    frame.get_by_role("link", name="Neighbours", exact=True).click()
    frame.get_by_role("link", name="chunk 2", exact=True).click()
    expect(frame.get_by_text("distance 0.").first).to_be_visible()
    frame.get_by_role("link", name="Shards", exact=True).click()
    frame.get_by_label("Choose shard val_docs").click()
    frame.get_by_role("button", name="Repair the chosen shards").click()
    expect(frame.get_by_text("rebuild val_docs (even if the files are intact)")).to_be_visible()
    expect(frame.get_by_role("button", name="Repair", exact=True)).to_be_visible()


def test_the_frame_follows_airflow_and_leads_back_to_it(page: Page, demo: Demo, screenshots: Path) -> None:
    page.goto(f"{demo.ui}/dags")
    page.get_by_role("link", name="RETRO", exact=True).click()
    frame = page.frame_locator(FRAME)
    frame.get_by_role("link", name="demo", exact=True).click()
    expect(page).to_have_url(re.compile("/plugin/retro-datasets/retro/[0-9a-f]{8}/demo$"))
    page.screenshot(path=screenshots / "page-frame.png")
    for mode, colour in (("dark", DARK), ("light", LIGHT)):
        page.evaluate("mode => { document.documentElement.className = mode; }", mode)
        expect(frame.locator("body")).to_have_css("background-color", colour)
    frame.locator("a[data-airflow]").filter(has_text=DEMO_RUN).first.click()
    expect(page).to_have_url(re.compile("/dags/retro_dataset/runs/demo-"))
    expect(page.get_by_text(re.compile("^Dataset demo, "))).to_be_visible()


def test_a_task_links_to_the_pages_of_its_run(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.ui}/retro/")
    page.get_by_role("link", name="demo", exact=True).click()
    run = page.locator("a[data-airflow]").filter(has_text=DEMO_RUN).first.get_attribute("href")
    page.goto(f"{demo.ui}{run}/tasks/publish.describe/details")
    for link in ("Run and shards", "Dataset card"):
        expect(page.get_by_role("link", name=link)).to_be_visible()
    page.get_by_role("link", name="Neighbours", exact=True).last.click()
    expect(page.frame_locator(FRAME).get_by_role("heading", name="demo, run demo-")).to_be_visible()
