import csv
import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest

from restorevar.evaluation.protocol import PROTOCOLS
from restorevar.evaluation.report import CasePool, Results, choose_cases, gather_cases, write_html, write_markdown
from restorevar.evaluation.scores import ScoreTable, summarize, write_summary
from tests.evaluation.photos import pairs, photo, tensor

FACTS = {"model": "a <b>model</b> & more", "seed": "0", "configuration": "model: x\ndata: y\n"}


@pytest.fixture(scope="module")
def run() -> tuple[Results, CasePool]:
    """Eight photos of four kinds: the model helps all but one."""
    table, pool = ScoreTable(("psnr", "ssim")), CasePool()
    for copy in range(2):
        for index, (degraded, clean) in enumerate(pairs(64, 80)):
            kind = ("rain", "low_light", "haze", "motion_blur")[index]
            labels = {"kind": [kind], "dataset": ["set"], "path": [f"/photos/{copy}<{index}>.png"]}
            given, target = tensor(degraded), tensor(clean)
            share = -0.5 if (copy, index) == (1, 0) else 0.5
            restored = (given + (target - given) * share).clamp(0, 1)
            before = table.update(given, target, method="degraded input", role="input", **labels)[0]
            score = table.update(restored, target, **labels)[0]
            table.update(target, target, method="tokenizer, continuous", role="ceiling", **labels)
            if kind == "haze":
                table.update(given, target, method="dark channel prior", role="blind", **labels)
            pixels = (restored[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            pool.add(score, before, {"input": degraded, "restored": pixels, "clean": clean})
    scores = table.gather()
    return Results(scores, summarize(scores), {"lpips": "no weights"}, {"rival": "it failed"}, FACTS), pool


def test_the_figures_are_those_of_the_csv(run, tmp_path):
    results, pool = run
    write_html(tmp_path / "report.html", results, gather_cases(pool.cases))
    write_summary(tmp_path / "summary.csv", results.summaries)
    text = (tmp_path / "report.html").read_text()
    rows = re.findall(r'<tr class="(\w+)"><td>([^<]+) <span.*?</td>(.*?)</tr>', text, re.DOTALL)
    shown = [
        (role, method, [re.findall(r"[-+\d.]+", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells, re.DOTALL)])
        for role, method, cells in rows
    ]
    with (tmp_path / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    kinds = ["haze", "low_light", "motion_blur", "rain", "all"]
    checked = 0
    first_table = shown[: len({row["method"] for row in summary})]
    for _, method, cells in first_table:
        for kind, numbers in zip(kinds, cells, strict=True):
            group = "all" if kind == "all" else "kind"
            match = [
                row
                for row in summary
                if (row["group"], row["kind"], row["method"], row["metric"]) == (group, kind, method, "psnr")
            ]
            if numbers == ["-"]:
                continue
            assert numbers[0] == f"{float(match[0]['mean']):.2f}"
            assert numbers[1:3] == [f"{float(match[0]['low']):.2f}", f"{float(match[0]['high']):.2f}"]
            if match[0]["gain"]:
                assert numbers[3] == f"{float(match[0]['gain']):+.2f}"
            checked += 1
    assert checked == 3 * 5 + 1  # the dark channel prior has no mean over all images


def test_nothing_is_fetched_and_nothing_is_injected(run, tmp_path):
    results, pool = run
    write_html(tmp_path / "report.html", results, gather_cases(pool.cases))
    text = (tmp_path / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "url(" not in text
    assert "<b>model</b>" not in text
    assert "&lt;b&gt;model&lt;/b&gt; &amp; more" in text
    assert "1&lt;0&gt;.png" in text


def test_failures_come_first(run):
    _, pool = run
    failures, groups = choose_cases(gather_cases(pool.cases))
    assert [case.score.path for case in failures] == ["/photos/1<0>.png"]
    assert set(groups) == {"rain", "low_light", "haze", "motion_blur"}
    assert [label for label, _ in groups["rain"]] == ["worst and median", "best"]
    assert groups["rain"][0][1].gain < 0 < groups["rain"][1][1].gain


def test_markdown_has_the_same_tables(run, tmp_path):
    results, _ = run
    write_markdown(tmp_path / "report.md", results)
    text = (tmp_path / "report.md").read_text()
    mean = next(s for s in results.summaries if (s.group, s.method, s.metric) == ("all", "RestoreVAR", "psnr"))
    assert f"RestoreVAR: {mean.estimate.mean:.2f} dB PSNR over 8 images" in text
    assert "1 of 8 images" in text
    assert "LPIPS is missing: no weights." in text
    assert "rival is left out: it failed." in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| method")]
    assert widths[0] == 4 + 1 + 2  # four kinds, all images


def test_the_published_rows_stand_beside_ours_under_the_paper_protocol(run, tmp_path):
    results, _ = run
    paper = dataclasses.replace(PROTOCOLS["paper"])
    scores = [dataclasses.replace(score, protocol=paper, dataset="Rain100H") for score in results.scores]
    more = [dataclasses.replace(score, dataset="Test100") for score in scores]
    summaries = summarize([*scores, *more])
    write_markdown(tmp_path / "paper.md", Results([*scores, *more], summaries, {}, {}, {}))
    text = (tmp_path / "paper.md").read_text()
    table = [line.split(" | ") for line in text[text.index("## Beside the published scores") :].splitlines()]
    rows = {line[0].removeprefix("| "): line[1:] for line in table if len(line) == 16}
    assert rows["PromptIR (published)"][:3] == ["32.02", "0.952", "0.013"]
    ours = rows["RestoreVAR (model, this run)"]
    mean = next(s for s in summaries if (s.group, s.method, s.metric) == ("all", "RestoreVAR", "psnr"))
    assert ours[6] == f"{mean.estimate.mean:.2f}"
    assert ours[0] == "-"
    assert "arXiv:2505.18047" in text
    write_markdown(tmp_path / "native.md", results)
    assert "PromptIR" not in (tmp_path / "native.md").read_text()


def test_the_pool_is_bounded_and_keeps_the_extremes(run):
    results, _ = run
    model = next(score for score in results.scores if score.role == "model")
    before = next(score for score in results.scores if score.role == "input")
    pool, picture = CasePool(limit=12, extremes=3), photo("chelsea.png", 20, 20)
    gains = np.random.default_rng(0).permutation(60)
    for gain in gains:
        score = dataclasses.replace(model, path=f"{gain}.png", values={"psnr": 20.0 + gain})
        pool.add(score, dataclasses.replace(before, values={"psnr": 20.0}), {"input": picture})
    kept = [case.gain for case in gather_cases(pool.cases)]
    assert len(kept) == 12
    assert kept[:3] == [0, 1, 2]
    assert kept[-3:] == [57, 58, 59]
    assert all(case.pictures["input"][:4] == b"RIFF" for case in pool.cases)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_page_works_in_a_browser(run, tmp_path):
    """The slider moves, the buttons work, no error: a script at the end of the page tries them and writes the title."""
    results, pool = run
    write_html(tmp_path / "report.html", results, gather_cases(pool.cases))
    probe = """
    <script>
    const errors = []; window.addEventListener("error", event => errors.push(event.message));
    const slider = document.querySelector(".slider"), range = slider.querySelector("input");
    const clip = () => getComputedStyle(slider.querySelector(".over")).clipPath, before = clip();
    range.value = 20; range.dispatchEvent(new Event("input"));
    document.querySelector(".swap").click();
    document.querySelectorAll("[role=tab]")[1].click();
    const hidden = [...document.querySelectorAll(".panel")].map(panel => panel.hidden).join();
    document.body.textContent = ["RESULT", before, clip(), slider.querySelector(".left").textContent, hidden,
      performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
      errors.length].join("|") + "|END";
    </script></body>"""
    page = tmp_path / "probe.html"
    page.write_text((tmp_path / "report.html").read_text().replace("</body>", probe))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=4000"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"RESULT\|(.*)\|END", done.stdout)
    assert found, done.stderr[-500:]
    assert found[1].split("|") == [
        "inset(0px 50% 0px 0px)",
        "inset(0px 80% 0px 0px)",
        "clean",
        "true,false",
        "0",
        "0",
    ]


def test_long_names_of_methods_fit_beside_a_plot(run, tmp_path):
    results, _ = run
    name = "a rival with a name of more letters than there is room for"
    scores = [dataclasses.replace(score, method=name) if score.role == "blind" else score for score in results.scores]
    write_html(tmp_path / "report.html", dataclasses.replace(results, scores=scores), [])
    plots = (tmp_path / "report.html").read_text().split('class="plots"')[1]
    assert f"{name[:25]}…<title>{name}</title>" in plots
