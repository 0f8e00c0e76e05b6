from restorevar.benchmarking.latent_tables import ANOTHER, FULL, latent_tables


def row(method: str, kind: str, metric: str, mean: float, gain: float | None) -> dict:
    return {"method": method, "kind": kind, "metric": metric, "mean": mean, "gain": gain}


def test_every_kind_is_a_column_and_the_mean_and_clean_photos_come_last() -> None:
    psnr = {"all": 21.0, "low_light": 20.0, "dust": 22.0, "clean": 40.0}
    rows = [row("input", kind, "psnr", mean - 5, None) for kind, mean in psnr.items()]
    rows += [row(FULL, kind, "psnr", mean, 5.0) for kind, mean in psnr.items()]
    rows += [row(ANOTHER, kind, "psnr", mean - 2, 3.0) for kind, mean in psnr.items()]
    rows += [row(method, kind, "ssim", 0.5, None) for method in ("input", FULL, ANOTHER) for kind in psnr]
    tables = latent_tables(rows, [FULL, "input"])
    assert tables.kinds == ["low light", "dust", "mean", "clean"]
    assert tables.gains == {
        FULL: ["+5.00", "+5.00", "+5.00", "40.00 dB"],
        "input": ["15.00 dB", "17.00 dB", "16.00 dB", "35.00 dB"],
    }
    assert tables.ssims["input"] == ["0.500"] * 4
    assert tables.costs == {"low light": 2.0, "dust": 2.0, "mean": 2.0, "clean": 2.0}
