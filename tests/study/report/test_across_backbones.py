"""The figure across backbones: a panel for each, from whatever the store holds."""

import matplotlib.pyplot as plt
import pandas as pd

from idsel_core.study.report.across_backbones import backbones_figure, read_backbones
from idsel_core.study.store.results import Results
from tests.support.rows import make_rows


def written(store: Results, job: str, backbone: str) -> None:
    full = make_rows(method="full", budgets=(576.0,)).assign(correct=True)
    rows = pd.concat([full, make_rows()], ignore_index=True).assign(backbone=backbone)
    store.write(job, rows, {})


def test_each_backbone_has_a_panel(tmp_path):
    store = Results(tmp_path)
    for job, backbone in (("04_ablation_budget", "embedded"), ("04_ablation_budget-llava-7b-scenes", "llava-7b")):
        written(store, job, backbone)
    written(store, "04_ablation_budgets", "another job")
    rows = read_backbones(store)
    figure = backbones_figure(rows, resamples=50)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["embedded\nscenes, validation", "llava-7b\nscenes, validation"]
    kept = figure.axes[0].lines[0].get_xdata()
    assert list(kept) == [16 / 576, 64 / 576]
    assert "backbone embedded and llava-7b" in figure.get_supxlabel()
    plt.close(figure)


def test_an_empty_store_gets_a_sentence(tmp_path):
    figure = backbones_figure(read_backbones(Results(tmp_path)), resamples=50)
    assert figure.texts[0].get_text().startswith("The store holds no budgets of any backbone yet")
    plt.close(figure)
