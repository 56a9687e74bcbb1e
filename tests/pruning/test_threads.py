"""Several threads run one model at a time, each with blocks of its own, and answer as one after the other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from idsel_core import get_method, prune
from tests.support import families, tiny
from tests.support.families import FAMILIES
from tests.support.llava_prompts import same, state

THREADS = 4
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [families.IMAGE, families.VIDEO]}
NAMES = ("idselection", "topk", "divprune", "uniform", "diversity", "random")


def methods_of(model_budgets, names=NAMES):
    return [get_method(names[k % len(names)], budget=budget) for k, budget in enumerate(model_budgets)]


def answer(model, method, inputs):
    with prune(model, method) as run:
        tokens = model.generate(**inputs, **GREEDY)
    return tokens, [(record.indices, record.requested) for record in run.report]


def check(model, jobs):
    whole = model.generate(**jobs[0][1], **GREEDY)
    before = state(model)
    wanted = [answer(model, *job) for job in jobs]
    barrier = threading.Barrier(THREADS)

    def work(first):
        barrier.wait()
        return [answer(model, *job) for job in jobs[first::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        got = list(pool.map(work, range(THREADS)))
    for first in range(THREADS):
        for (tokens, report), (wanted_tokens, wanted_report) in zip(got[first], wanted[first::THREADS], strict=True):
            assert report == wanted_report
            assert torch.equal(tokens, wanted_tokens)
    assert same(state(model), before)
    assert torch.equal(model.generate(**jobs[0][1], **GREEDY), whole)


@pytest.mark.feature("threads")
@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
def test_threads_answer_as_one_after_the_other(inside):
    names = ("fastv", "pyramiddrop", "dart", "sparsevlm") if inside else NAMES
    jobs = [
        (method, tiny.prompts((1 + k % 2,), seed=k))
        for k, method in enumerate(methods_of([20 + k % 9 for k in range(THREADS * 20)], names))
    ]
    check(tiny.build(layers=5), jobs)


@pytest.mark.slow
@pytest.mark.feature("threads")
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_threads_of_every_family_answer_as_one_after_the_other(family):
    layouts = [((1,),), ((0,),), ((2, 0),)]
    jobs = [
        (method, family.prompts(layouts[k % len(layouts)]))
        for k, method in enumerate(methods_of([4 + k % 3 for k in range(THREADS * 4)]))
    ]
    check(family.build(), jobs)


@pytest.mark.feature("threads")
def test_a_thread_that_generates_is_pruned_and_reported():
    model, inputs = tiny.build(), tiny.prompts((1,))
    wanted, _ = answer(model, get_method("topk", budget=4), inputs)
    got = []
    with prune(model, get_method("topk", budget=4)) as run:
        thread = threading.Thread(target=lambda: got.append(model.generate(**inputs, **GREEDY)))
        thread.start()
        thread.join()
    assert torch.equal(got[0], wanted) and len(run.report) == 1


@pytest.mark.feature("threads")
@pytest.mark.parametrize("name", ["topk", "fastv"])
def test_a_block_may_end_while_a_thread_still_generates(name):
    model, inputs = tiny.build(layers=5), tiny.prompts((1,))
    method, whole = get_method(name, budget=20), model.generate(**inputs, **GREEDY)
    wanted, _ = answer(model, method, inputs)
    before, began, left, got = state(model), threading.Event(), threading.Event(), []

    def hold(ids, scores, **_):
        began.set()
        left.wait(60)
        return torch.zeros(len(ids), dtype=torch.bool)

    with prune(model, method) as run:
        options = {**GREEDY, "stopping_criteria": [hold]}
        thread = threading.Thread(target=lambda: got.append(model.generate(**inputs, **options)))
        thread.start()
        assert began.wait(60)
    left.set()
    thread.join()
    assert torch.equal(got[0], wanted) and len(run.report) == 1
    assert same(state(model), before)
    assert torch.equal(model.generate(**inputs, **GREEDY), whole)


@pytest.mark.feature("threads")
def test_each_thread_keeps_its_own_innermost_block():
    model, inputs = tiny.build(), tiny.prompts((1,))
    step, seen = threading.Barrier(2, timeout=60), {}

    def work(budget):
        with prune(model, get_method("topk", budget=budget)) as outer:
            step.wait()
            with prune(model, get_method("topk", budget=budget + 1)) as inner:
                step.wait()
                model(**inputs)
            step.wait()
            model(**inputs)
            step.wait()
        seen[budget] = ([r.after for r in outer.report], [r.after for r in inner.report])

    threads = [threading.Thread(target=work, args=(budget,)) for budget in (3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {3: ([3], [4]), 9: ([9], [10])}
